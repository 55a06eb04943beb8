"use strict";

/* ---- data: ranked by suspicion, so an image's index is its rank and "above the cut" is a prefix ---- */

const byId = (id) => document.getElementById(id);
// without its folder the page has nothing to show, and says so
const NOTHING = { images: [], groups: [], review: {}, hasHeatMaps: false };
const isWhole = Boolean(window.auditData ?? byId("data"));
const data = window.auditData ?? (isWhole ? JSON.parse(byId("data").textContent) : NOTHING);
byId("data")?.remove(); // its text would stay in memory beside the parsed data
const { groups } = data;
const UNKNOWN = { curve: [], isNoise: null, flags: [], percentile: null };
const images = data.images.map((image) => ({ ...UNKNOWN, ...image }));

const indices = images.map((_, index) => index);
const foldCase = (text) => text.normalize().toLowerCase();
const searchableNames = images.map((image) => foldCase(image.name));
const injected = indices.filter((index) => images[index].isNoise);
const isTruthKnown = images.some((image) => image.isNoise !== null);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// a cut can lie below every score and above every score
const range = (() => {
  const [high, low] = [images[0]?.score ?? 0, images.at(-1)?.score ?? 0];
  const margin = (high - low || Math.abs(high) || 1) / 100;
  return { low: low - margin, high: high + margin, size: high - low + 2 * margin };
})();

/* Four digits of the range: scores that differ look different. */
function formatScore(score) {
  const decimals = Math.max(3 - Math.floor(Math.log10(range.size)), 0);
  return decimals > 8 || Math.abs(score) >= 1e9 ? String(Number(score.toPrecision(6))) : score.toFixed(decimals);
}

const orders = { descending: () => indices, ascending: () => indices.toReversed(), name: sortedByName };
function sortedByName() {
  const collator = new Intl.Collator("en", { numeric: true });
  return indices.toSorted((a, b) => collator.compare(images[a].name, images[b].name));
}

/* ---- pictures: of many images they lie in scripts beside the page, which are loaded when they are looked at ---- */

const KEPT_FILES = 64;
const files = new Map(); // by number: promises of what they hold, the latest asked for last
const waiting = new Map(); // by number: who waits for a script that is on its way
window.auditPictures = (stamp, number, pictures) => {
  if (stamp !== data.stamp) {
    say("This page was written anew since it was opened, and its pictures are of other images. Save your review and reload.");
    return;
  }
  for (const resolve of waiting.get(number) ?? []) resolve(pictures);
  waiting.delete(number); // it would keep the pictures
};

/* A promise of an image's thumbnail and, if there is one, its heat map. */
function picturesOf(index) {
  const count = data.picturesAFile;
  if (!count) return Promise.resolve(images[index].pictures);
  const number = Math.floor(index / count);
  const file = files.get(number) ?? loadFile(number);
  files.delete(number);
  files.set(number, file);
  if (files.size > KEPT_FILES) files.delete(files.keys().next().value);
  return file.then((pictures) => pictures[index % count]);
}

function loadFile(number) {
  return new Promise((resolve) => {
    const others = waiting.get(number);
    if (others) {
      others.push(resolve);
      return;
    }
    waiting.set(number, [resolve]);
    const script = Object.assign(document.createElement("script"), { src: `thumbnails/${number}.js` });
    script.addEventListener("load", () => script.remove());
    script.addEventListener("error", () => {
      files.delete(number); // it may be there when it is asked for again
      waiting.delete(number);
    });
    document.head.append(script);
  });
}

function addPictures(element, index, count) {
  picturesOf(index).then((sources) => {
    element.replaceChildren(...sources.slice(0, count).map((src) => Object.assign(new Image(), { src, alt: "" })));
  });
}

/* ---- near-duplicates: a group is shown as one card, that of its most suspicious image ---- */

const groupOf = new Map(groups.flatMap((group) => group.map((index) => [index, group])));
const membersOf = (index) => (state.isGrouped && groupOf.get(index)) || [index];
const isLead = (index) => membersOf(index)[0] === index;

/* ---- state ---- */

const state = {
  cut: range.high,
  above: 0, // number of images above the cut
  verdicts: images.map(() => ""), // "good", "bad" or "" where nobody has looked
  isGrouped: groups.length > 0,
  filter: "all",
  flag: "",
  query: "",
  order: "descending",
  view: [], // indices of the cards shown, in their order; replaced, never changed
  active: 0, // place in the view of the card that the keyboard is at
};
const ALIKE = "near-duplicates";
const isAbove = (index) => index < state.above;
const hasFlag = (index, flag) => (flag === ALIKE ? groupOf.has(index) : images[index].flags.includes(flag));

const filters = {
  all: () => true,
  above: isAbove,
  unseen: (index) => state.verdicts[index] === "",
  good: (index) => state.verdicts[index] === "good",
  bad: (index) => state.verdicts[index] === "bad",
};

function refreshView() {
  const active = state.view[state.active];
  const passes = (index) =>
    filters[state.filter](index) &&
    (!state.flag || hasFlag(index, state.flag)) &&
    searchableNames[index].includes(state.query);
  state.view = orders[state.order]().filter((index) => isLead(index) && membersOf(index).some(passes));
  const place = state.view.indexOf(active);
  state.active = place >= 0 ? place : clamp(state.active, 0, Math.max(state.view.length - 1, 0));
  const total = state.isGrouped ? indices.filter(isLead).length : images.length;
  const suffix = total < images.length ? ` (${images.length} images)` : "";
  byId("shown").value = `${state.view.length} of ${total} shown${suffix}`;
  byId("empty").hidden = state.view.length > 0;
  drawCards();
}

/* ---- cards: only those in and near the window exist ---- */

const grid = byId("grid");
const cards = new Map(); // by index of the image
const ROWS_BEYOND = 2;
let isPrinting = false;

function gridLayout() {
  const style = getComputedStyle(grid);
  return {
    columns: style.gridTemplateColumns.split(" ").length,
    rowHeight: parseFloat(style.gridAutoRows) + parseFloat(style.rowGap),
  };
}

function drawCards() {
  const { columns, rowHeight } = gridLayout();
  const rows = Math.ceil(state.view.length / columns);
  const scrolled = -grid.getBoundingClientRect().top;
  const topRow = Math.floor(scrolled / rowHeight);
  const bottomRow = Math.ceil((scrolled + innerHeight) / rowHeight);
  const first = isPrinting ? 0 : clamp(topRow - ROWS_BEYOND, 0, rows);
  const last = isPrinting ? rows : clamp(bottomRow + ROWS_BEYOND, first, rows);
  const near = state.view.slice(first * columns, last * columns);
  grid.style.paddingTop = `${first * rowHeight}px`;
  grid.style.paddingBottom = `${(rows - last) * rowHeight}px`;

  const hadFocus = grid.contains(document.activeElement);
  keepOnly(near);
  if (!cards.has(state.view[state.active])) {
    const topPlace = Math.ceil(scrolled / rowHeight) * columns;
    state.active = clamp(topPlace, first * columns, Math.max(first * columns + near.length - 1, 0));
  }
  near.forEach((index, offset) => {
    const place = first * columns + offset;
    const card = cards.get(index);
    card.tabIndex = place === state.active ? 0 : -1;
    card.ariaPosInSet = place + 1;
    card.ariaSetSize = state.view.length;
    markCard(card, index);
  });
  // the keyboard follows when its card scrolls out of the window
  if (hadFocus && !grid.contains(document.activeElement)) {
    cards.get(state.view[state.active])?.focus({ preventScroll: true });
  }
}

/* Cards that stay are not moved: a moved element loses the focus. */
function keepOnly(near) {
  const wanted = new Set(near);
  for (const [index, card] of cards) {
    if (!wanted.has(index)) {
      card.remove();
      cards.delete(index);
    }
  }
  let next = grid.firstElementChild;
  for (const index of near) {
    if (!cards.has(index)) cards.set(index, makeCard(index));
    const card = cards.get(index);
    if (card === next) next = next.nextElementSibling;
    else grid.insertBefore(card, next);
  }
}

function makeCard(index) {
  const image = images[index];
  const card = byId("card").content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  card.dataset.index = index;
  part(".rank").textContent = `#${index + 1}`;
  part(".score").textContent = formatScore(image.score);
  if (image.percentile !== null) {
    part(".percentile").textContent = `p${image.percentile.toFixed(1)}`;
    part(".percentile").title = `${image.percentile.toFixed(1)} % of the training images score lower`;
  }
  part(".name bdi").textContent = image.name;
  part(".name").title = image.name;
  part(".pictures").ariaLabel = `Enlarge ${image.name}`;
  addPictures(part(".pictures"), index, 2);
  drawSparkline(part(".sparkline"), image.curve);
  return card;
}

/* What is known of a card, as words in small boxes; the last ones are cut off where there is no room. */
function badgesOf(index) {
  const badges = [];
  const alike = membersOf(index).length;
  if (alike > 1) badges.push(["alike", `${alike} alike`]);
  badges.push(...images[index].flags.map((flag) => ["flag", flag]));
  if (images[index].isNoise) badges.push(["injected", "injected"]);
  if (isAbove(index)) badges.push(["above", "above the cut"]);
  return badges;
}

/* The verdict on all images of a card, "mixed" where they differ. */
function verdictOf(index) {
  const verdicts = new Set(membersOf(index).map((member) => state.verdicts[member]));
  return verdicts.size === 1 ? [...verdicts][0] : "mixed";
}

function markCard(card, index) {
  const verdict = verdictOf(index);
  const badges = badgesOf(index);
  card.classList.toggle("above", isAbove(index));
  card.querySelector(".badges").replaceChildren(
    ...badges.map(([className, textContent]) => Object.assign(document.createElement("span"), { className, textContent })),
  );
  markVerdict(card, verdict, images[index].name);
  card.ariaLabel = `${describe(index)}, ${verdict || "unseen"}, ${images[index].name}`;
}

function markVerdict(element, verdict, name) {
  for (const kind of ["good", "bad"]) {
    element.classList.toggle(kind, verdict === kind);
    const button = element.querySelector(`.verdict .${kind}`);
    button.ariaPressed = verdict === kind;
    button.ariaLabel = `${kind === "good" ? "Good" : "Bad"}: ${name}`;
  }
}

function describe(index) {
  const { score, percentile } = images[index];
  const facts = [`Rank ${index + 1} of ${images.length}`, `score ${formatScore(score)}`];
  if (percentile !== null) facts.push(`above ${percentile.toFixed(1)} % of the training images`);
  return [...facts, ...badgesOf(index).map(([, text]) => text)].join(", ");
}

const markCards = () => cards.forEach(markCard);

function focusCard(place) {
  if (!state.view.length) return;
  state.active = clamp(place, 0, state.view.length - 1);
  const index = state.view[state.active];
  if (!cards.has(index)) {
    const { columns, rowHeight } = gridLayout();
    const rowTop = grid.getBoundingClientRect().top + Math.floor(state.active / columns) * rowHeight;
    scrollBy(0, rowTop - innerHeight / 2);
  }
  drawCards();
  cards.get(index).focus({ preventScroll: true });
  cards.get(index).scrollIntoView({ block: "nearest" });
}

/* ---- sparkline: a curve over the epochs, with a gap where an epoch has none; one scale for all images ---- */

const curveRange = { low: Infinity, high: -Infinity };
for (const { curve } of images) {
  for (const value of curve) {
    if (value === null) continue;
    curveRange.low = Math.min(curveRange.low, value);
    curveRange.high = Math.max(curveRange.high, value);
  }
}

function drawSparkline(svg, curve) {
  const values = curve.filter((value) => value !== null);
  svg.toggleAttribute("hidden", !values.length);
  if (!values.length) return;
  const { low, high } = curveRange;
  let path = "";
  let isGap = true;
  curve.forEach((value, epoch) => {
    if (value !== null) {
      const x = curve.length > 1 ? 3 + (94 * epoch) / (curve.length - 1) : 50;
      const y = high > low ? 27 - (24 * (value - low)) / (high - low) : 15;
      path += isGap ? `M${x},${y}h0` : `L${x},${y}`; // h0: a lone epoch is a dot
    }
    isGap = value === null;
  });
  svg.firstElementChild.setAttribute("d", path);
  svg.ariaLabel = `${data.curveName} over the epochs, last ${values.at(-1)}`;
}

/* ---- cut, histogram ---- */

const histogram = byId("histogram");
const slider = byId("slider");
const BINS = 80;
const LEAST_BAR = 2; // of 100: a single image stays visible beside thousands

function svgElement(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function binOf(score) {
  return Math.min(Math.floor((BINS * (score - range.low)) / range.size), BINS - 1);
}

function drawHistogram() {
  const bins = Array.from({ length: BINS }, () => ({ injected: 0, other: 0 }));
  for (const { score, isNoise } of images) {
    bins[binOf(score)][isNoise ? "injected" : "other"] += 1;
  }
  const tallest = Math.max(...bins.map((bin) => bin.injected + bin.other));
  histogram.setAttribute("viewBox", `0 0 ${BINS} 100`);
  histogram.append(svgElement("rect", { class: "region", y: 0, height: 100 }));
  bins.forEach((bin, x) => {
    let y = 100;
    for (const kind of ["injected", "other"]) {
      if (!bin[kind]) continue;
      const height = Math.max((92 * bin[kind]) / tallest, LEAST_BAR);
      y -= height;
      histogram.append(svgElement("rect", { class: kind, x: x + 0.05, y, width: 0.9, height }));
    }
  });
  histogram.append(svgElement("line", { class: "cut", y1: 0, y2: 100 }));
  histogram.ariaLabel = `Histogram of the scores of ${images.length} images`;
  byId("lowest").textContent = formatScore(range.low);
  byId("highest").textContent = formatScore(range.high);
}

function setCut(cut) {
  state.cut = clamp(cut, range.low, range.high);
  const below = images.findIndex((image) => image.score <= state.cut);
  state.above = below < 0 ? images.length : below;
  slider.value = state.cut;
  byId("cut-field").value = formatScore(state.cut);
  byId("above-count").textContent = `${state.above} of ${images.length} above the cut`;
  slider.ariaValueText = `${formatScore(state.cut)}, ${byId("above-count").textContent}`;
  if (isTruthKnown) {
    byId("above-injected").textContent = `(${injected.filter(isAbove).length} of ${injected.length} injected)`;
  }
  // between the bars of what is above and what is not, where they have one each: the cut is often the score of an image
  const [lowestAbove, highestBelow] = [images[state.above - 1], images[state.above]];
  let x = clamp((BINS * (state.cut - range.low)) / range.size, 0, BINS);
  if (highestBelow && (!lowestAbove || binOf(lowestAbove.score) > binOf(highestBelow.score))) {
    x = Math.max(x, binOf(highestBelow.score) + 1);
    if (lowestAbove) x = Math.min(x, binOf(lowestAbove.score));
  }
  const region = histogram.querySelector(".region");
  region.setAttribute("x", x);
  region.setAttribute("width", BINS - x);
  const line = histogram.querySelector(".cut");
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  byId("mark-above").disabled = state.above === 0;
  if (state.filter === "above") refreshView();
  else markCards();
}

/* ---- review: the page's own, and what was said in this browser, kept as a draft; the newer word on an image holds ---- */

const DRAFT = `anomalib-cdd review ${location.pathname} ${data.root}`;
const placeOf = new Map(images.map((image, index) => [image.name, index]));
const isVerdict = (value) => value === "good" || value === "bad";
const say = (text) => { byId("message").textContent = text; };
const written = new Map(Object.entries(data.review)); // verdicts by name, some of images that are not on this page
const writtenAt = Date.parse(data.reviewedAt) || 0;
const said = new Map(); // [verdict, milliseconds] by name, "" where one was taken back
let savedAt = 0; // when the review was last offered as a file: that it lies anywhere is not known
let draftTimer = 0;

/* what was saved here, and is not in a file of later, was taken back elsewhere */
const takenBack = (when) => when <= savedAt && savedAt < writtenAt;
const holds = ([name, [, when]]) => when > writtenAt || (!written.has(name) && !takenBack(when));
let last = 0; // the clock of who wrote the page, or of an earlier draft, may be ahead: each word is later than the last
const now = () => (last = Math.max(Date.now(), writtenAt + 1, savedAt + 1, last + 1));

/* Verdicts by name, also of images that are not on this page: they are saved with the others. */
function reviewed() {
  const review = new Map(written);
  for (const [name, [verdict]] of [...said].filter(holds)) {
    if (verdict) review.set(name, verdict);
    else review.delete(name);
  }
  return review;
}

function showReviewed() {
  const review = reviewed();
  images.forEach((image, index) => { state.verdicts[index] = review.get(image.name) ?? ""; });
}

const isSaid = (statement) =>
  Array.isArray(statement) && (statement[0] === "" || isVerdict(statement[0])) && Number.isFinite(statement[1]);

/* Take what a draft says, of this page or of the same one in another tab. */
function takeDraft(text) {
  try {
    const draft = JSON.parse(text);
    for (const [name, statement] of Object.entries(draft.images)) {
      if (!isSaid(statement)) continue;
      last = Math.max(last, statement[1]);
      if (!(said.get(name)?.[1] >= statement[1])) said.set(name, statement);
    }
    savedAt = Math.max(savedAt, Number(draft.savedAt) || 0);
  } catch { /* there is none */ }
}

/* Some browsers keep nothing for pages opened from disk, or little: the review then lives as long as the page. */
function keepDraft() {
  clearTimeout(draftTimer);
  draftTimer = setTimeout(writeDraft, 200);
}

function writeDraft() {
  draftTimer = 0;
  try {
    takeDraft(localStorage.getItem(DRAFT)); // what another tab has said meanwhile
    localStorage.setItem(DRAFT, JSON.stringify({ images: Object.fromEntries(said), savedAt }));
  } catch {
    say("This browser keeps no draft: save the review before you close the page.");
  }
}

addEventListener("pagehide", () => {
  clearTimeout(draftTimer);
  if (draftTimer) writeDraft();
});

/* A draft that says what the page's own review says has done its work. */
function readDraft() {
  try {
    takeDraft(localStorage.getItem(DRAFT));
    const differing = [...said].filter(([name, [verdict]]) => verdict !== (written.get(name) ?? ""));
    const standing = differing.filter(holds);
    if (!standing.length) {
      localStorage.removeItem(DRAFT);
      said.clear();
    }
    const unsaved = standing.filter(([, [, when]]) => when > savedAt).length;
    const older = differing.length - standing.length;
    if (unsaved) say(`${unsaved} images reviewed in this browser, not saved yet.`);
    else if (standing.length) say("The review was saved from this browser: put review.json beside this page.");
    else if (older) say(`review.json says otherwise of ${older} images reviewed earlier in this browser, and holds.`);
  } catch { /* this browser keeps none */ }
}

addEventListener("storage", (event) => {
  if (event.key !== DRAFT) return;
  takeDraft(event.newValue);
  showReviewed();
  refreshReview();
});

/* Take verdicts by name; return how many of them are of images on this page. */
function takeReview(verdicts) {
  const taken = Object.entries(verdicts).filter((entry) => isVerdict(entry[1]));
  for (const [name, verdict] of taken) said.set(name, [verdict, now()]);
  showReviewed();
  return taken.filter(([name]) => placeOf.has(name)).length;
}

function refreshReview() {
  const count = (verdict) => state.verdicts.filter((value) => value === verdict).length;
  byId("counts").value = `${count("bad")} bad, ${count("good")} good, ${count("")} unseen`;
  byId("download").disabled = !state.verdicts.includes("bad");
  byId("clear").disabled = !reviewed().size;
  byId("save").disabled = !written.size && !said.size; // a review that was cleared is saved as well
  if (["unseen", "good", "bad"].includes(state.filter)) refreshView();
  else markCards();
}

function judge(members, verdict) {
  for (const index of members) {
    state.verdicts[index] = verdict;
    said.set(images[index].name, [verdict, now()]);
  }
  say("");
  keepDraft();
  refreshReview();
}

/* Of all images, also those that are not on this page. */
function clearReview() {
  for (const name of reviewed().keys()) said.set(name, ["", now()]);
  showReviewed();
  say("");
  keepDraft();
  refreshReview();
}

/* The same verdict a second time takes it back. Returns whether one was given. */
function toggleVerdict(index, verdict) {
  const given = verdictOf(index) === verdict ? "" : verdict;
  judge(membersOf(index), given);
  return given !== "";
}

async function loadReview(file) {
  if (!file) return;
  try {
    const { images: verdicts, root } = JSON.parse(await file.text());
    const total = Object.keys(verdicts).length;
    if (root && data.root && root !== data.root && !confirm(`${file.name} is a review of ${root}, this page is of ${data.root}. Take it all the same?`)) return;
    const taken = takeReview(verdicts);
    keepDraft();
    refreshReview();
    say(`${file.name}: ${taken} images${taken < total ? `; ${total - taken} others are not on this page` : ""}`);
  } catch {
    say(`${file.name} is no review that this page saved.`);
  }
}

function offer(name, type, text) {
  const blob = new Blob([text], { type });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers read it only after the click
}

function saveReview() {
  savedAt = now();
  const review = { root: data.root || undefined, saved: new Date(savedAt).toISOString(), images: Object.fromEntries(reviewed()) };
  offer("review.json", "application/json", `${JSON.stringify(review, null, 1)}\n`);
  keepDraft(); // whether the file was kept, and where, no page is told
  say("Put review.json beside this page: the next audit into this folder brings it back.");
}

const csvField = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function downloadExcludeList() {
  const bad = indices.filter((index) => state.verdicts[index] === "bad");
  const lines = ["image_path", ...bad.map((index) => csvField(images[index].name))];
  offer("exclude.csv", "text/csv;charset=utf-8", lines.map((line) => `${line}\r\n`).join(""));
}

/* ---- larger view: walks through what was shown when it opened ---- */

const SHOWN_BY_BROWSERS = /\.(bmp|gif|jpe?g|png|webp)$/i;
const viewer = byId("viewer");
const viewed = { view: [], place: 0, member: 0 };
const viewedIndex = () => viewed.view[viewed.place];

function openViewer(index) {
  viewed.view = state.view;
  showInViewer(state.view.indexOf(index));
  viewer.showModal();
  viewer.focus();
}

function showInViewer(place) {
  viewed.place = clamp(place, 0, viewed.view.length - 1);
  const members = membersOf(viewedIndex());
  byId("viewer-members").hidden = members.length === 1;
  byId("viewer-members").replaceChildren(
    ...members.map((member) => {
      const button = Object.assign(document.createElement("button"), { type: "button", ariaLabel: images[member].name });
      addPictures(button, member, 1);
      button.addEventListener("click", () => showMember(member));
      return button;
    }),
  );
  showMember(viewedIndex());
  byId("viewer-previous").disabled = viewed.place === 0;
  byId("viewer-next").disabled = viewed.place === viewed.view.length - 1;
}

function showMember(index) {
  const image = images[index];
  byId("viewer-name").textContent = image.name;
  byId("viewer-image").alt = `Image ${image.name}`;
  byId("viewer-heat-map").alt = `Heat map of ${image.name}`;
  byId("viewer-heat-map").hidden = !data.hasHeatMaps;
  viewed.member = index;
  for (const id of ["viewer-image", "viewer-heat-map"]) byId(id).removeAttribute("src"); // no other image under its name
  picturesOf(index).then((sources) => {
    if (viewed.member !== index) return; // the person has gone on
    [byId("viewer-image").src, byId("viewer-heat-map").src = ""] = sources;
    showFile(index);
  });
  byId("viewer-facts").textContent = describe(index);
  drawSparkline(byId("viewer-sparkline"), image.curve);
  for (const button of byId("viewer-members").children) button.ariaPressed = button.ariaLabel === image.name;
  markVerdict(viewer, verdictOf(viewedIndex()), image.name);
}

/* the image itself in place of its thumbnail, where the page lies on the machine that has it */
function showFile(index) {
  const { name } = images[index];
  if (!data.files || location.protocol !== "file:" || !SHOWN_BY_BROWSERS.test(name)) return;
  const file = new Image();
  file.addEventListener("load", () => {
    if (viewed.member === index) byId("viewer-image").src = file.src;
  });
  file.src = `${data.files}/${name.split("/").map(encodeURIComponent).join("/")}`;
}

function judgeViewed(verdict) {
  const goesOn = verdict === "" ? (judge(membersOf(viewedIndex()), ""), false) : toggleVerdict(viewedIndex(), verdict);
  showInViewer(viewed.place + (goesOn ? 1 : 0));
}

/* ---- events ---- */

const VERDICT_KEYS = { b: "bad", g: "good", u: "" };

byId("search").addEventListener("input", (event) => {
  state.query = foldCase(event.target.value);
  refreshView();
});
for (const [id, key] of [["sort", "order"], ["flag", "flag"]]) {
  byId(id).addEventListener("change", (event) => {
    state[key] = event.target.value;
    refreshView();
  });
}
for (const choice of document.getElementsByName("filter")) {
  choice.addEventListener("change", () => {
    state.filter = choice.value;
    refreshView();
  });
}
byId("grouped").addEventListener("change", (event) => {
  state.isGrouped = event.target.checked;
  refreshView();
});
byId("heat-maps").addEventListener("change", (event) => showHeatMaps(event.target.checked));
function showHeatMaps(isShown) {
  document.body.classList.toggle("no-heat-maps", !isShown);
  refreshView();
}
slider.addEventListener("input", () => setCut(slider.valueAsNumber));
byId("cut-field").addEventListener("change", (event) => {
  const cut = event.target.valueAsNumber;
  setCut(Number.isNaN(cut) ? state.cut : cut);
});
histogram.addEventListener("click", (event) => {
  const box = histogram.getBoundingClientRect();
  setCut(range.low + (range.size * (event.clientX - box.left)) / box.width);
});
byId("mark-above").addEventListener("click", () => {
  const above = new Set(indices.slice(0, state.above).flatMap(membersOf));
  judge([...above].filter((index) => !state.verdicts[index]), "bad");
});
byId("clear").addEventListener("click", () => {
  if (confirm("Forget the review of all images?")) clearReview();
});
byId("save").addEventListener("click", saveReview);
byId("download").addEventListener("click", downloadExcludeList);
byId("load").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault(); // the space bar would scroll the page too
  byId("load-file").click();
});
byId("load-file").addEventListener("change", (event) => {
  loadReview(event.target.files[0]);
  event.target.value = ""; // the same file can be taken again
});
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", type === "dragover");
    if (type === "drop") loadReview(event.dataTransfer.files[0]);
  });
}

const indexOf = (element) => Number(element.closest(".card").dataset.index);
grid.addEventListener("focusin", (event) => {
  const place = state.view.indexOf(indexOf(event.target));
  const before = cards.get(state.view[state.active]);
  if (before) before.tabIndex = -1;
  event.target.closest(".card").tabIndex = 0;
  state.active = place;
});
grid.addEventListener("click", (event) => {
  const button = event.target.closest(".verdict button");
  if (button) toggleVerdict(indexOf(button), button.classList.contains("bad") ? "bad" : "good");
  else if (event.target.closest(".pictures")) openViewer(indexOf(event.target));
});

/* Judge the card that the keyboard is at and go on to the next, which is in its place where a filter took it away. */
function judgeActive(index, verdict) {
  const place = state.active;
  const goesOn = verdict === "" ? (judge(membersOf(index), ""), false) : toggleVerdict(index, verdict);
  focusCard(place + (goesOn && state.view[place] === index ? 1 : 0));
}

grid.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const { columns } = gridLayout();
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity };
  const key = event.key.toLowerCase();
  if (event.key in steps) {
    const place = state.active + steps[event.key];
    // there is nothing above the first row and below the last one
    if (place >= 0 && place < state.view.length || !Number.isFinite(place)) focusCard(place);
  } else if (key in VERDICT_KEYS) {
    judgeActive(indexOf(event.target), VERDICT_KEYS[key]);
  } else if (event.key === " " && event.target.matches(".card")) {
    toggleVerdict(indexOf(event.target), "bad");
  } else if (event.key === "Enter" && event.target.matches(".card")) {
    openViewer(indexOf(event.target));
  } else {
    return;
  }
  event.preventDefault();
});

viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  if (event.key === "ArrowLeft" || event.key === "ArrowUp") showInViewer(viewed.place - 1);
  else if (event.key === "ArrowRight" || event.key === "ArrowDown") showInViewer(viewed.place + 1);
  else if (key in VERDICT_KEYS) judgeViewed(VERDICT_KEYS[key]);
  else return;
  event.preventDefault();
});
viewer.addEventListener("click", (event) => {
  const button = event.target.closest(".verdict button");
  if (button) judgeViewed(button.classList.contains("bad") ? "bad" : "good");
});
viewer.addEventListener("close", () => {
  const place = state.view.indexOf(viewedIndex());
  focusCard(place >= 0 ? place : state.active);
});
byId("viewer-close").addEventListener("click", () => viewer.close());
byId("viewer-previous").addEventListener("click", () => showInViewer(viewed.place - 1));
byId("viewer-next").addEventListener("click", () => showInViewer(viewed.place + 1));

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || viewer.open || event.target.matches("input:is([type=search], [type=number])")) return;
  event.preventDefault();
  byId("search").focus();
});

addEventListener("scroll", () => requestAnimationFrame(drawCards), { passive: true });
addEventListener("resize", drawCards);
for (const [type, value] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(type, () => {
    isPrinting = value;
    drawCards();
  });
}

/* ---- start ---- */

function offerFlags() {
  const found = [...new Set(images.flatMap((image) => image.flags)), ...(groups.length ? [ALIKE] : [])];
  for (const flag of found) {
    const count = indices.filter((index) => hasFlag(index, flag)).length;
    byId("flag").append(Object.assign(document.createElement("option"), { value: flag, text: `${flag} (${count})` }));
  }
  byId("flag-field").hidden = !found.length;
}

byId("missing").hidden = isWhole;
document.querySelector("main").hidden = document.querySelector(".bar").hidden = !isWhole;
document.body.classList.toggle("no-heat-maps", !data.hasHeatMaps);
byId("heat-maps-switch").hidden = !data.hasHeatMaps;
byId("grouped-switch").hidden = !groups.length;
byId("legend").hidden = !isTruthKnown;
slider.min = range.low;
slider.max = range.high;
readDraft();
showReviewed();
offerFlags();
drawHistogram();
refreshView();
setCut(data.cut ?? range.high);
refreshReview();
