# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-Domain Distillation for training sets with unlabelled anomalies (arXiv 2508.18007).

:meth:`Cdd.epoch` is Algorithm 1 of the paper: a generator that yields after each optimiser step.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Adam, Optimizer

from anomalib_cdd.teachers.anomaly_map import check_sides
from anomalib_cdd.teachers.backbones import Teacher
from anomalib_cdd.teachers.distances import distance
from anomalib_cdd.teachers.students import DEFAULT_WIDTH
from anomalib_cdd.training.compat import QuantizesStudent
from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.epochs import TrainsByEpochs
from anomalib_cdd.training.finite import check_finite
from anomalib_cdd.training.image_files import contents_of
from anomalib_cdd.training.report import TrainingReport
from anomalib_cdd.training.staged import StagedEpoch

from . import checks
from .domains import (
    DomainStudents,
    Plan,
    batches,
    epoch_generator,
    partition,
    plan_epoch,
    student_seed,
    visits_of,
)
from .history import TrainingHistory
from .loss import Selection, perturb, target_distance, with_confident_patches
from .students import StudentsInTraining
from .torch_model import CddModel
from .training_set import TrainingSet

ADAM_BETAS = (0.5, 0.999)
FUSED_ADAM = ("cpu", "cuda", "xpu")
# what the paper has where a default departs from it
PAPER = {
    "domains": (2, 3, 3, 2),
    "domain_students": "forked",
    "regularization": "s-curve",
    "confident_once": False,
    "max_confident": 0.5,
    "confident_patches": 0.0,
}


class Cdd(  # type: ignore[misc]  # as anomalib's own
    StagedEpoch, TrainsByEpochs, LabelFreeDefaults, QuantizesStudent, AnomalibModule
):
    """Cross-Domain Distillation (CDD).

    Every epoch splits the training set into domains, trains a student of each, and lets the students of the *other*
    domains tell the global student what each image would look like without its anomaly.

    The defaults depart from the paper in ``domains``, ``domain_students``, ``domain_interval``, ``regularization``,
    ``confident_once``, ``max_confident`` and ``confident_patches``; :meth:`paper` takes the paper's setting. With
    ``domain_construction``, ``confidence_guidance``, ``pseudo_normal`` and ``confident_distillation`` off and
    ``feature_noise=0`` it is plain Reverse Distillation.

    Args:
        backbone: timm name of the teacher.
        layers: Names of the teacher's levels. ``None`` takes those at strides 4, 8 and 16: a ResNet's ``layer1`` to
            ``layer3``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher, for sites without internet.
        student_width: Channels of the finest map of a student that is built for a teacher outside the ResNet family.
        domains: Schedule of K, in equal shares of the training; the paper's is (2, 3, 3, 2) (Table 5).
        domain_students: ``"persistent"``: they live on from epoch to epoch, each with a fold of the images that stays
            while K stays, so that it is never trained on the other folds. ``"forked"``, the paper's: anew in every
            epoch, from the previous student. A share of the epochs, in (0, 1): persistent that long, forked after.
        domain_interval: Persistent domain students are trained in every n-th epoch; in those between, what they said
            stands. Forked ones are trained in every epoch.
        max_confident: Largest share of confident images, in [0, 1]; the paper's is 0.5 (Eq. 13, Table A1). With 0 there
            are none, and what is said of them below has no effect: ``confident_patches`` stand in for them.
        regularization: Weight of the previous student in a domain student's loss: a constant, 0 is off; ``"s-curve"``,
            the paper's (Eq. 16), or ``"linear"`` (Table A2).
        selection: Which of the other domains' students gives the pseudo-normal target; ``"all"`` needs
            ``confident_patches=0`` (Table 6).
        feature_noise: Standard deviation of the noise on the global student's input; 0 is off (Eq. 19).
        relative_noise: Whether that counts in standard deviations of each level; else it is absolute, as in the paper.
        domain_construction: Whether there are domains at all (Table 4, D.C.).
        confidence_guidance: Whether the confident images join every domain (Table 4, Conf.G.).
        pseudo_normal: Whether the global student learns from the other domains' students rather than from the teacher
            (Table 4, P.N.). Without it nothing reads the domain students, so none is trained.
        confident_distillation: Whether the global student also learns the confident images from the teacher
            (Table 4, Conf.D.; Eq. 21).
        confident_once: Whether the global student visits a confident image once an epoch, with all domain students as
            candidates; the paper's visits it once per domain, each time without that domain's student.
        confident_patches: Share of the patches of a batch, those on which the other domain's student agrees with the
            teacher most, that the global student learns from the teacher, whatever the image; 0, the paper's, is off.
        warmup_epochs: First epochs as plain Reverse Distillation.
        learning_rate: Adam's, for every student.
        seed: Seed of the students' initial weights, of partitions, orders and noise, whatever was drawn before.
        cache: Whether to keep the teacher's features of the training set, in fp16. Where training augmentations are
            random they are computed at every pass all the same.
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
        domains: Sequence[int] = (2,),
        domain_students: DomainStudents = "persistent",
        domain_interval: int = 2,
        max_confident: float = 0.0,
        regularization: Literal["s-curve", "linear"] | float = 0.0,
        selection: Selection = "consensual",
        feature_noise: float = 0.2,
        relative_noise: bool = False,
        domain_construction: bool = True,
        confidence_guidance: bool = True,
        pseudo_normal: bool = True,
        confident_distillation: bool = True,
        confident_once: bool = True,
        confident_patches: float = 0.95,
        warmup_epochs: int = 0,
        learning_rate: float = 0.005,
        seed: int = 0,
        cache: bool = True,
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
        domains = checks.schedule_of(domains)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(backbone=backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        signature = inspect.signature(Cdd.__init__).parameters.items()
        checks.check_options(self.options, {name: parameter.default for name, parameter in signature})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone: `torch.manual_seed` seeds every device
            self.model: CddModel = CddModel(Teacher(backbone, layers, pre_trained, weights), student_width)
        self.training_history: TrainingHistory | None = None
        # not modules: what follows is of training alone and stays out of the model and its exports
        self._training_set: TrainingSet | None = None
        self._others = StudentsInTraining()
        self._contents: list[str] = []  # of the files of a fit

    @classmethod
    def paper(cls, **options: Any) -> "Cdd":
        """Return a model with the paper's setting and ``options``."""
        return cls(**{**PAPER, **options})

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
        options, data, share = self.options, self.training_set, self.ranks.share
        plan = self._others.adapt(plan_epoch(e, epochs, len(data), options))
        generator = epoch_generator(options.seed, e)
        global_student, global_optimizer = self.model.student.train(), self.all_optimizers()[0]
        for number, student in enumerate([global_student, *self._others.students]):
            student.reseed(student_seed(options.seed, e, number))

        # S_prev: the global student as the epoch finds it, frozen
        previous = copy.deepcopy(global_student).eval().requires_grad_(requires_grad=False)

        # lines 6 to 9: confidence by the previous student, domains around the confident images
        with self.finite("the previous student's recall"):
            data.recall(previous, needed=plan.recalls)
        folds = self._others.folds(plan, options.seed) if plan.persistent else ()
        guided = options.confidence_guidance and not plan.warm_up
        domains = partition(data.confidence, plan.confident, plan.domains, generator, guided, folds, self._others.shows)
        parts = [self._batches(domains.domain(k), generator) for k in range(plan.domains if plan.learns else 0)]
        visits = visits_of(domains, options.confident_once, dealt=options.selection == "next")
        visited = batches(visits, data.batch_size, generator)
        confident = self._batches(domains.confident if options.confident_distillation else visits[:0, 0], generator)
        self.planned_steps = sum(map(len, [*parts, visited, confident]))
        self._log_plan(plan, len(data))

        # lines 10 to 17: a student for each domain, forked from the previous one or living on (Eq. 15)
        for k, part in enumerate(parts):
            optimizer = self.all_optimizers()[k + 1]
            student = self._others.ready(k, global_student, optimizer, lives_on=k < plan.kept)
            for indices, teacher in zip(part, data.teacher(part), strict=True):
                output = student(teacher)
                loss = distance(teacher, output)
                if plan.weight > 0:
                    loss = loss + plan.weight * distance(data.recalled(indices, teacher), output)
                self.optimize(optimizer, loss, "domain")
                yield
        students = [student.eval() for student in self._others.students[: plan.domains]]
        for student in students[: len(parts)]:
            self.ranks.average_statistics(student)
        self._others.meet(domains, plan, options)

        # lines 18 to 26: the other domains' students say what is normal in each image (Eq. 17 to 20)
        with self.finite("the pseudo-normal targets"):
            # what the previous student has chosen does not stand for the next: a resumed training has forgotten it
            unmet, anew = self._others.unmet, plan.learns or plan.recalls
            targets = data.targets(students, visits, options.selection, unmet, anew) if plan.across else None
        sigma = 0.0 if plan.warm_up else options.feature_noise
        for batch, teacher in zip(visited, data.teacher([visit[:, 0] for visit in visited]), strict=True):
            output = global_student(
                [share(level) for level in perturb(teacher, sigma, generator, options.relative_noise)]
            )
            own, target = share(batch), [share(level) for level in teacher]
            if targets is None:
                loss = distance(target, output)
            else:
                said = targets(own, target)
                if options.confident_patches:
                    said = with_confident_patches(said, target, options.confident_patches, self.ranks.gather)
                loss = target_distance(said, output, options.selection)
            self.optimize(global_optimizer, loss, "global")
            yield

        # lines 27 to 29: confident images straight from the teacher (Eq. 21)
        for teacher in data.teacher(confident):
            self.optimize(global_optimizer, distance(teacher, global_student(teacher)), "confident")
            yield
        self.ranks.average_statistics(global_student)

    def _batches(self, samples: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Return this rank's shares of the batches of a shuffled pass."""
        return [self.ranks.share(batch) for batch in batches(samples, self.training_set.batch_size, generator)]

    def _log_plan(self, plan: Plan, samples: int) -> None:
        share = plan.confident / samples
        self.log_epoch(K=plan.domains, r=share, regularization=plan.weight, confident=plan.confident)

    # ------------------------------------------------------------------------------------------ Lightning

    @property
    def advice(self) -> str:  # type: ignore[override]
        """What to try when numbers stop being finite."""
        options = self.options
        return (
            f"Try a lower learning_rate (it is {options.learning_rate}), relative_noise: true (it is "
            f"{options.relative_noise}), or precision bf16-mixed or 32-true where it is 16-mixed."
        )

    def on_fit_start(self) -> None:
        """Read the training set."""
        super().on_fit_start()
        transform = getattr(self.pre_processor, "transform", None)
        self._training_set = data = TrainingSet.of(self.trainer, self.model, transform, self.options, self.ranks)
        check_sides(*(side * self.model.teacher.levels[0].stride for side in data.features.shapes[0][-2:]))
        checks.check_size(len(data), data.batch_size, self.trainer, self.options)
        data.fill(self.trainer)
        checks.tell_budget(len(data), data.batch_size, self.trainer.max_epochs or 1, self.options)
        self._contents = contents_of(data.image_paths)
        self._others.begin(data.image_paths, self._contents, data.features.per_image, max(self.options.domains))

    def on_train_start(self) -> None:
        """Learn at this model's rate, whatever that of a checkpoint was."""
        super().on_train_start()
        for optimizer in self.all_optimizers():
            for group in optimizer.param_groups:
                group["lr"] = self.options.learning_rate

    def on_epoch_trained(self) -> None:
        """Take down what the epoch said of each image."""
        # a checkpoint may follow: none is written of what a last step has spoilt
        with self.finite("after its last step"):
            state = self.model.student.state_dict()
            check_finite(**{f"the global student's {name}": value for name, value in state.items()})
        data = self.training_set
        if self.training_history is None or self.training_history.image_paths != data.image_paths:
            self.training_history = TrainingHistory(data.image_paths, contents=self._contents)
        self.training_history.record(self.current_epoch, *data.cross_domain_scores())
        # for Lightning's EarlyStopping: 1 where the ranking of the training images no longer changes
        self.log_epoch(ranking_agreement=self.training_history.agreement())
        if self.current_epoch + 1 == self.trainer.max_epochs:  # the last checkpoint holds the report
            self.training_report()

    def on_train_end(self) -> None:
        """Make the report of a training that was stopped early while the training set is at hand."""
        super().on_train_end()
        self.training_report()

    def training_report(self) -> TrainingReport | None:
        """Return each training image's score by students neither trained on it nor descended from one that was.

        They have the mean and the spread of the trained global student's own scores of these images. ``None`` before a
        training, and where some image has no score: without pseudo-normal targets, after a warm-up.
        """
        history, student = self.training_history, self.model.student
        if history is None:
            return None
        if history.own is None and self._training_set is not None:
            training = student.training
            history.own = self._training_set.scale_by(student.eval())
            student.train(training)
        return history.report()

    def configure_optimizers(self) -> list[Optimizer]:
        """Return one Adam for the global student and one for each domain student."""
        students = [self.model.student, *self._others.make(self.model.student, max(self.options.domains))]
        # one kernel a step; Lightning clips no gradients that such a step unscales
        fused = self.device.type in FUSED_ADAM and getattr(self._trainer, "precision", None) != "16-mixed"
        rate = self.options.learning_rate
        return [Adam(student.parameters(), lr=rate, betas=ADAM_BETAS, fused=fused) for student in students]

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
            if self._training_set is not None:
                self._training_set.close()
            self._training_set = None
            self._others.release()
            self.end_training()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what inference needs: anomalib's torch export pickles the whole module."""
        training: dict[str, Any] = {
            "_training_set": None,
            "training_history": None,
            "_others": self._others.of_a_copy(),
            "_contents": [],
        }
        return super().__getstate__() | training

    # ------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the training's history, and of domain students what the next epoch goes on with."""
        super().on_save_checkpoint(checkpoint)
        if self.training_history is not None:
            checkpoint["training_history"] = self.training_history.state_dict()
        checkpoint["learned_from"] = sorted(self._others.learned_from)
        if self._training_set is None:
            if self._others.has_begun and self._trainer is not None and self._trainer.interrupted:
                msg = "The fit has ended by an error, and its domain students are gone: take its last checkpoint."
                raise RuntimeError(msg)
            _forget_moments(checkpoint, 1)  # of domain students that are gone
            return
        epochs, samples = self.trainer.max_epochs or 1, len(self.training_set)
        following = plan_epoch(min(self.current_epoch + 1, epochs - 1), epochs, samples, self.options)
        alive = following.domains if following.persistent else 0
        checkpoint["cdd_training"] = self._others.state_dict(alive, self._training_set.image_paths)
        _forget_moments(checkpoint, 1 + alive)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model before anything of it is used."""
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        checks.check_checkpoint(checkpoint, self.state_dict(), self.options, fitting)
        super().on_load_checkpoint(checkpoint)
        history = checkpoint.get("training_history")
        self.training_history = None if history is None else TrainingHistory(**history)
        self._others.learned_from = set(checkpoint.get("learned_from", history["image_paths"] if history else ()))
        self._others.load_state_dict(checkpoint.get("cdd_training", {}) if fitting else {})


def _forget_moments(checkpoint: dict[str, Any], first: int) -> None:
    """Leave out what the optimisers from the ``first`` on remember of gradients."""
    for state in checkpoint.get("optimizer_states", [])[first:]:
        state["state"] = {}
