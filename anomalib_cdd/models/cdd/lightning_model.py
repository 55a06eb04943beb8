# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-Domain Distillation for training sets with unlabelled anomalies (arXiv 2508.18007).

:meth:`Cdd.epoch` is Algorithm 1 of the paper. It is a generator that yields after each optimiser step;
``training_step`` advances it in proportion to the trainer's batches, so that progress, callbacks, precision,
checkpoints and resume are Lightning's own.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, cast

import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import update_bn

from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.distances import distance
from anomalib_cdd.teachers.students import DEFAULT_WIDTH, Student
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.precision import bf16_where_fast, is_traced
from anomalib_cdd.training.quantization import quantize
from anomalib_cdd.training.ranks import Ranks, gradients, use_one_results_folder

from . import checks
from .domains import (
    batches,
    confident_count,
    domain_count,
    epoch_generator,
    partition,
    passes,
    regularization_weight,
    visits_of,
)
from .history import TrainingHistory
from .loss import Selection, perturb, target_distance
from .torch_model import CddModel
from .training_set import TrainingSet

logger = logging.getLogger(__name__)

PAPER_EPOCHS = 200
ADAM_BETAS = (0.5, 0.999)
FUSED_ADAM = ("cpu", "cuda", "xpu")


class Cdd(LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """Cross-Domain Distillation (CDD).

    Every epoch splits the training set into domains, trains a student of each, and lets the students of the *other*
    domains tell the global student what each image would look like without its anomaly.

    The defaults are the paper's, but for ``confident_visits`` and ``autocast``. With ``domain_construction``,
    ``confidence_guidance``, ``pseudo_normal`` and ``confident_distillation`` off, ``regularization=0`` and
    ``feature_noise=0`` it is plain Reverse Distillation.

    Args:
        backbone: timm name of the teacher.
        layers: Names of the teacher's levels. ``None`` takes those at strides 4, 8 and 16: a ResNet's ``layer1`` to
            ``layer3``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher, for sites without internet.
        student_width: Channels of the finest map of a student that is built for a teacher outside the ResNet family.
        domains: Schedule of K, in equal shares of the training (Table 5).
        max_confident: Largest share of confident images, in [0, 1] (Eq. 13, Table A1).
        regularization: Weight of the previous student in a domain student's loss: ``"s-curve"`` (Eq. 16),
            ``"linear"``, or a constant; 0 is off (Table A2).
        selection: Which of the other domains' students gives the pseudo-normal target (Table 6).
        feature_noise: Standard deviation of the noise on the global student's input; 0 is off (Eq. 19).
        feature_noise_scale: ``"absolute"``, or ``"relative"`` to each level's own standard deviation.
        domain_construction: Whether there are domains at all (Table 4, D.C.).
        confidence_guidance: Whether the confident images join every domain (Table 4, Conf.G.).
        pseudo_normal: Whether the global student learns from the other domains' students rather than from the teacher
            (Table 4, P.N.). Without it nothing reads the domain students, so none is trained.
        confident_distillation: Whether the global student also learns the confident images from the teacher
            (Table 4, Conf.D.; Eq. 21).
        confident_visits: ``"once"`` lets the global student visit a confident image once an epoch, with all domain
            students as candidates: a tenth to a quarter less time for an epoch. ``"each"``, the paper's, visits it once
            per domain, each time without that domain's student. On two of three data sets they are level; on the
            third ``"once"`` is ahead on two seeds and far behind on one (``experiments/README.md``).
        domain_optimizer: Adam moments of a domain student at its fork: ``"reset"``; ``"keep"`` those of the domain
            student before it; ``"fork"``, a copy of the global student's.
        domain_passes: Passes of a domain student over its domain in an epoch. The paper's is one; a small training set
            makes few steps of it.
        domain_statistics: BatchNorm's statistics with which a domain student gives targets: ``"running"`` averages;
            ``"refreshed"``, taken anew from its domain once it is trained, for one more forward pass. After few steps
            running averages are still largely the previous student's (``experiments/README.md``).
        domain_parallel: On several devices, whether each trains the students of some domains, and all of them exchange
            the results; otherwise they share every batch.
        warmup_epochs: First epochs as plain Reverse Distillation.
        learning_rate: Adam's, for every student.
        gradient_clip_val: Largest norm of a student's gradient; ``None`` does not clip.
        seed: Seed of partitions, orders and noise. With the epoch it fixes them, whatever was drawn before.
        autocast: ``"auto"`` runs students in bf16, in training and prediction, where the device computes in it and the
            trainer asks for no precision of its own; ``"off"`` leaves precision to the trainer. The teacher runs in
            fp32 and exports are fp32 either way.
        cache: ``"auto"`` keeps the teacher's features of the training set, in fp16, unless training augmentations are
            random; ``"off"`` computes them at every pass.
        cache_memory_gb: Memory for features, in GiB; what does not fit goes to disk.
        cache_dir: Folder for features on disk; ``None`` takes the system's temporary folder.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256, centre crop of 224 and the teacher's normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        ValueError: If an option is out of its range, or two contradict each other.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import Cdd, MVTecNoisy
        >>> engine = Engine(max_epochs=200)
        >>> engine.train(Cdd(), datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        student_width: int = DEFAULT_WIDTH,
        domains: Sequence[int] = (2, 3, 3, 2),
        max_confident: float = 0.5,
        regularization: Literal["s-curve", "linear"] | float = "s-curve",
        selection: Selection = "consensual",
        feature_noise: float = 0.2,
        feature_noise_scale: Literal["absolute", "relative"] = "absolute",
        domain_construction: bool = True,
        confidence_guidance: bool = True,
        pseudo_normal: bool = True,
        confident_distillation: bool = True,
        confident_visits: Literal["each", "once"] = "once",
        domain_optimizer: Literal["reset", "keep", "fork"] = "reset",
        domain_passes: int = 1,
        domain_statistics: Literal["running", "refreshed"] = "running",
        domain_parallel: bool = True,
        warmup_epochs: int = 0,
        learning_rate: float = 0.005,
        gradient_clip_val: float | None = None,
        seed: int = 0,
        autocast: Literal["auto", "off"] = "auto",
        cache: Literal["auto", "off"] = "auto",
        cache_memory_gb: float = 8.0,
        cache_dir: str | None = None,
        audit: bool = True,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        # a ListConfig in the checkpoint would not load with weights_only
        layers = None if layers is None else tuple(str(layer) for layer in layers)
        domains = tuple(int(count) for count in domains)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(backbone=backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        checks.check_options(self.options)
        self.model: CddModel = CddModel(Teacher(backbone, layers, pre_trained, weights), student_width)
        self.automatic_optimization = False
        self.training_history: TrainingHistory | None = None
        # not modules: what follows is of training alone and stays out of checkpoints and exports
        self._training_set: TrainingSet | None = None
        self._ranks = Ranks()
        self._domain_students: list[Student] = []
        self._running_epoch: tuple[int, Iterator[None]] | None = None
        self._steps_done = 0
        self._steps_planned = 1

    @property
    def options(self) -> Any:  # a mapping whose keys are attributes too
        """The constructor's arguments, as Lightning keeps them in checkpoints."""
        return self.hparams

    # ------------------------------------------------------------------------------------------ Algorithm 1

    def epoch(self, e: int, epochs: int) -> Iterator[None]:
        """Train one epoch (Algorithm 1, lines 6 to 29); yields after each optimiser step.

        Args:
            e: The epoch, 0 to ``epochs - 1``.
            epochs: Number of epochs E.
        """
        options, data, size = self.options, self.training_set, self.training_set.batch_size
        generator, ranks = epoch_generator(options.seed, e), self._ranks
        warm_up = e < options.warmup_epochs
        global_student, global_optimizer = self.model.student, self._optimizers()[0]

        # S_prev: the global student as the epoch finds it, frozen
        previous = copy.deepcopy(global_student).eval().requires_grad_(requires_grad=False)
        across = options.pseudo_normal and not warm_up
        guided = (options.confidence_guidance or options.confident_distillation) and not warm_up
        count = domain_count(e, epochs, options.domains) if options.domain_construction and not warm_up else 1
        confident = confident_count(e, epochs, len(data), options.max_confident) if guided else 0
        weight = regularization_weight(e, epochs, options.regularization) if across else 0.0
        sigma, relative = 0.0 if warm_up else options.feature_noise, options.feature_noise_scale == "relative"

        # lines 6 to 9: confidence by the previous student, domains around the confident images
        with checks.finite("the previous student's recall", e, options):
            data.recall(previous, needed=across or bool(confident))
        domains = partition(data.confidence, confident, count, generator, shared=options.confidence_guidance)
        parts = [
            passes(domains.domain(k), size, generator, options.domain_passes) for k in range(count if across else 0)
        ]
        parts, domain_steps = self._share_of_domains(parts)
        visits = visits_of(domains, confident_each=options.confident_visits == "each")
        visit_batches = batches(visits, size, generator)
        distils = options.confident_distillation and len(domains.confident) > 1
        confident_batches = list(map(ranks.share, batches(domains.confident, size, generator))) if distils else []
        self._steps_planned = domain_steps + len(visit_batches) + len(confident_batches)
        self._log_epoch(K=count, r=confident / len(data), regularization=weight, confident=confident)

        # lines 10 to 17: a student for each domain, forked from the previous one (Eq. 15)
        students = []
        for k, part in enumerate(parts):
            student, optimizer = self._fork(k)
            for indices, teacher in zip(part, data.teacher(part), strict=True):
                output = student(teacher)
                loss = distance(teacher, output)
                if weight > 0:
                    loss = loss + weight * distance(data.recalled(indices, teacher), output)
                self._update(optimizer, loss, "domain")
                yield
            students.append(self._as_source(student, part))
        yield from repeat(None, domain_steps - sum(map(len, parts)))
        for k, student in enumerate(students):
            if options.domain_parallel:
                ranks.copy(student.state_dict().values(), owner=k)
            else:
                ranks.average_statistics(student)

        # lines 18 to 26: the other domains' students say what is normal in each image (Eq. 17 to 20)
        with checks.finite("the pseudo-normal targets", e, options):
            targets = data.targets(students, visits, options.selection) if across else None
        for batch, teacher in zip(visit_batches, data.teacher([visit[:, 0] for visit in visit_batches]), strict=True):
            output = global_student(list(map(ranks.share, perturb(teacher, sigma, generator, relative))))
            own, target = ranks.share(batch), list(map(ranks.share, teacher))
            if targets is None:
                loss = distance(target, output)
            else:
                loss = target_distance(targets(own, target), output, options.selection)
            self._update(global_optimizer, loss, "global")
            yield

        # lines 27 to 29: confident images straight from the teacher (Eq. 21)
        for teacher in data.teacher(confident_batches):
            self._update(global_optimizer, distance(teacher, global_student(teacher)), "confident")
            yield
        ranks.average_statistics(global_student)

    def _share_of_domains(self, parts: list[list[Tensor]]) -> tuple[list[list[Tensor]], int]:
        """Return what this rank trains domain students on, and the steps of the rank that takes most.

        All of some domains and nothing of others, or a share of every batch. The ranks' steps have to keep pace:
        Lightning has them talk at each of its own batches.
        """
        ranks = self._ranks
        if not self.options.domain_parallel:
            return [list(map(ranks.share, part)) for part in parts], sum(map(len, parts))
        most = max(sum(map(len, parts[rank :: ranks.count])) for rank in range(ranks.count))
        return [part if ranks.owns(k) else [] for k, part in enumerate(parts)], most

    def _fork(self, k: int) -> tuple[Student, LightningOptimizer]:
        """Make domain student k equal to the global student, parameters and buffers, and ready its optimiser."""
        student, optimizer = self._domain_students[k], self._optimizers()[k + 1]
        student.load_state_dict(self.model.student.state_dict())
        student.train()
        if self.options.domain_optimizer == "reset":
            optimizer.optimizer.state.clear()
        elif self.options.domain_optimizer == "fork":
            optimizer.optimizer.load_state_dict(copy.deepcopy(self._optimizers()[0].optimizer.state_dict()))
        return student, optimizer

    def _as_source(self, student: Student, part: list[Tensor]) -> Student:
        """Ready a trained domain student to give targets; ``part`` has the batches that it was trained on, if any."""
        if self.options.domain_statistics == "refreshed" and part:
            one_pass = part[: len(part) // self.options.domain_passes]
            update_bn(([teacher] for teacher in self.training_set.teacher(one_pass)), student)
        return student.eval()

    def _update(self, optimizer: LightningOptimizer, loss: Tensor, stage: str) -> None:
        """Take one optimiser step, with all ranks that have a share of the batch, and log the stage's loss."""
        with checks.finite(f"stage {stage}", self.current_epoch, self.options):
            checks.check_finite(loss=loss.detach())
        optimizer.zero_grad()
        self.manual_backward(loss)
        if stage != "domain" or not self.options.domain_parallel:
            self._ranks.average([loss, *gradients(optimizer)])
        optimizer.step()
        self.log(
            f"train_loss_{stage}",
            loss.detach(),
            on_step=False,
            on_epoch=True,
            prog_bar=stage == "global",
            batch_size=self.training_set.batch_size,
        )

    def _log_epoch(self, **values: float) -> None:
        self.log_dict(
            {f"epoch_{name}": float(value) for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=1,
        )

    # ------------------------------------------------------------------------------------------ Lightning

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Advance the epoch in proportion to the trainer's batches; the batch itself is not needed.

        Args:
            batch: Ignored: images are read by index, once.
            batch_idx: Index of the batch in the epoch.
        """
        del batch
        if self._running_epoch is None or self._running_epoch[0] != self.current_epoch:
            # made here and not in on_train_epoch_start, which a resume inside an epoch skips
            self._running_epoch = (self.current_epoch, self.epoch(self.current_epoch, self.trainer.max_epochs or 1))
            self._steps_done, self._steps_planned = 0, 1
        share = (batch_idx + 1) / self.trainer.num_training_batches
        while self.trainer.is_last_batch or self._steps_done < share * self._steps_planned:
            try:
                with self._autocast():
                    next(self._running_epoch[1])
            except StopIteration:
                # now, and not when the epoch ends: a checkpoint after validation comes before that
                self._remember_epoch()
                break
            self._steps_done += 1

    def _autocast(self) -> AbstractContextManager:
        chosen = self.dtype != torch.float32 or getattr(self._trainer, "precision", "32-true") != "32-true"
        auto = self.options.autocast == "auto" and not chosen and not is_traced()
        return bf16_where_fast(self.device) if auto else nullcontext()

    def _remember_epoch(self) -> None:
        # a checkpoint may follow: none is written of what a last step has spoilt
        with checks.finite("after its last step", self.current_epoch, self.options):
            state = self.model.student.state_dict()
            checks.check_finite(**{f"the global student's {name}": value for name, value in state.items()})
        data = self.training_set
        if self.training_history is None or self.training_history.image_paths != data.image_paths:
            self.training_history = TrainingHistory(data.image_paths)
        self.training_history.record(self.current_epoch, data.image_confidence(), data.cross_domain_scores())
        # for Lightning's EarlyStopping: 1 where the ranking of the training images no longer changes
        self._log_epoch(ranking_agreement=self.training_history.agreement())

    def training_suspicion(self) -> dict[str, float] | None:
        """Return how suspicious each training image is, by path, or ``None`` where the training has not told.

        The mean anomaly score that the students of *other* domains gave it, see :meth:`TrainingHistory.suspicion`: the
        global student has learned from every image, an anomalous one included.
        """
        suspicion = None if self.training_history is None else self.training_history.suspicion()
        if self.training_history is None or suspicion is None:
            return None
        return dict(zip(self.training_history.image_paths, suspicion.tolist(), strict=True))

    def on_train_epoch_end(self) -> None:
        """Forget the epoch that is over."""
        self._running_epoch = None

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Score a batch.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.

        Returns:
            The batch with anomaly maps and scores.
        """
        del batch_idx
        with self._autocast():
            return batch.update(**self.model(batch.image)._asdict())

    def test_step(self, batch: Batch, batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Score a batch; see :meth:`validation_step`."""
        with self._autocast():
            return super().test_step(batch, batch_idx, *args, **kwargs)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Score a batch; see :meth:`validation_step`."""
        with self._autocast():
            return super().predict_step(batch, batch_idx, dataloader_idx)

    def configure_optimizers(self) -> list[Optimizer]:
        """Return one Adam for the global student and one for each domain student."""
        self._domain_students = [copy.deepcopy(self.model.student) for _ in range(max(self.options.domains))]
        students = [self.model.student, *self._domain_students]
        # one kernel a step; Lightning clips no gradients that such a step unscales
        fused = self.device.type in FUSED_ADAM and getattr(self._trainer, "precision", None) != "16-mixed"
        rate = self.options.learning_rate
        return [Adam(student.parameters(), lr=rate, betas=ADAM_BETAS, fused=fused) for student in students]

    def _optimizers(self) -> list[LightningOptimizer]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip gradients: Lightning leaves that to models that step by themselves."""
        if self.options.gradient_clip_val:
            self.clip_gradients(optimizer, self.options.gradient_clip_val, gradient_clip_algorithm="norm")

    # jsonargparse and Lightning give no other place to say the method's own number of epochs: `trainer_arguments`
    # overrides the user, and once `fit` has begun an absent `max_epochs` cannot be told from 1000
    @LightningModule.trainer.setter  # type: ignore[attr-defined]
    def trainer(self, trainer: Trainer | None) -> None:
        """Attach the trainer; where it was given no number of epochs it takes the paper's."""
        if trainer is not None and getattr(trainer, "max_epochs", 0) is None and trainer.max_steps == -1:
            trainer.fit_loop.max_epochs = PAPER_EPOCHS
        LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Refuse what would train something else than asked for, before anything is read."""
        if stage == "fit":
            checks.check_trainer(self.trainer, self.options, overridden="configure_optimizers" in vars(self))
            use_one_results_folder(self.trainer)
        # not before: it imports anomalib's engine
        from anomalib_cdd.training.checkpoints import guard_checkpoints

        guard_checkpoints(self.trainer)

    def on_fit_start(self) -> None:
        """Read the training set."""
        self._ranks = Ranks.of(self.trainer)
        checks.check_statistics(self.model.student, self.options)
        if self._ranks.count > 1:
            # DistributedDataParallel knows neither the domain students nor several steps in a batch: `_update` averages
            self.trainer.strategy.model = self
        self._training_set = TrainingSet.of(self.trainer, self, self._ranks)
        checks.check_size(len(self._training_set), self._training_set.batch_size, self.trainer, self.options)

    def on_train_start(self) -> None:
        """Lay resumed moments out as the parameters are: a fused step on a processor takes that for granted."""
        for optimizer in self._optimizers():
            for parameter, state in optimizer.optimizer.state.items():
                for name, value in state.items():
                    if value.shape == parameter.shape and value.stride() != parameter.stride():
                        state[name] = torch.empty_like(parameter).copy_(value)

    @property
    def training_set(self) -> TrainingSet:
        """The training set as the teacher and the previous student see it; there is one only during a fit."""
        if self._training_set is None:
            msg = "There is no training set outside a fit."
            raise RuntimeError(msg)
        return self._training_set

    def teardown(self, stage: str) -> None:
        """Give features, memory and disk back."""
        if stage == "fit":
            self._drop_training_state()

    def _drop_training_state(self) -> None:
        if self._training_set is not None:
            self._training_set.close()
        self._training_set, self._running_epoch, self._domain_students = None, None, []
        self._ranks = Ranks()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what inference needs: anomalib's torch export pickles the whole module."""
        state = super().__getstate__()
        training: dict[str, Any] = {
            "_training_set": None,
            "_running_epoch": None,
            "_domain_students": [],
            "training_history": None,
        }
        return state | training

    # ------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the training's history; leave out domain students' moments that the next epoch does not read."""
        super().on_save_checkpoint(checkpoint)
        if self.training_history is not None:
            checkpoint["training_history"] = self.training_history.state_dict()
        if self.options.domain_optimizer != "keep":
            for state in checkpoint.get("optimizer_states", [])[1:]:
                state["state"] = {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model before anything of it is used."""
        checks.check_checkpoint(checkpoint, self)
        super().on_load_checkpoint(checkpoint)
        history = checkpoint.get("training_history")
        self.training_history = None if history is None else TrainingHistory(**history)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **kwargs: Any) -> "Cdd":  # type: ignore[override]
        """Load a model; the teacher's weights come from the checkpoint, so that nothing is fetched.

        Args:
            checkpoint_path: A checkpoint that Lightning wrote.
            kwargs: Constructor arguments to override, and those of anomalib's ``load_from_checkpoint``.

        Raises:
            ValueError: If the file is no checkpoint of this model, or holds anything but plain data.
        """
        with checks.readable_checkpoint(checkpoint_path):
            model = super().load_from_checkpoint(checkpoint_path, **{"pre_trained": False, "weights": None, **kwargs})
        return cast("Cdd", model)

    # ------------------------------------------------------------------------------------------ anomalib

    @staticmethod
    def _post_training_quantization_ov(model: Any, datamodule: AnomalibDataModule | None = None) -> Any:
        """Quantise for ``compression_type=INT8_PTQ``, by training images rather than by validation images."""
        return quantize(model, datamodule)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments that the trainer must have."""
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """One-class: there are no labels in training."""
        return LearningType.ONE_CLASS
