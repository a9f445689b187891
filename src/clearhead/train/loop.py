"""The one training loop: save, evaluate, step, and begin again, until done or told to stop."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clearhead import checkpoint
from clearhead.data import Rows
from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.tokenizer import Tokenizer
from clearhead.train.config import TrainConfig
from clearhead.train.diagnose import first_non_finite
from clearhead.train.evaluate import Evaluation
from clearhead.train.events import (
    Evaluated,
    Event,
    Observer,
    Saved,
    Started,
    Stepped,
    TrainingResult,
)
from clearhead.train.metrics import MetricsLog
from clearhead.train.objective import Objective
from clearhead.train.optim import (
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from clearhead.train.schedule import rate_factor
from clearhead.train.signals import StopRequest
from clearhead.train.state import TrainerState, random_state, restore_random_state
from clearhead.train.step import Gradient, apply_gradient, compute_gradient

_PLAN_AFTER = 4
_RECENT = 20
_EVALUATIONS = 10


class Trainer:
    """A run of training, in a folder, that can be killed at any moment and go on bit for bit.

    Args:
        run: The run's folder; checkpoints and metrics.jsonl are written there.
        model: The model, on its device; with `resume_from`, that checkpoint's.
        tokenizer: Saved with each checkpoint.
        objective: What to learn, and what to be measured by.
        config: How to train; `device` and `dtype` are no longer `auto`.
        documents: JSON documents to save in each checkpoint, by name.
        observers: Called with each event, in order.
        measure: Returns more to record of the model, every `measure_every` steps of the config.
        resume_from: The checkpoint to go on from.
        save: Writes a checkpoint, as `checkpoint.save` does.
    """

    def __init__(
        self,
        run: Path,
        model: GPT,
        tokenizer: Tokenizer,
        objective: Objective,
        config: TrainConfig,
        *,
        documents: Mapping[str, Mapping[str, Any]],
        observers: Sequence[Observer] = (),
        measure: Callable[[GPT], Mapping[str, Any]] | None = None,
        resume_from: Path | None = None,
        save: Callable[..., None] = checkpoint.save,
    ) -> None:
        self.run, self.model, self.tokenizer = run, model, tokenizer
        self.objective, self.config, self.save = objective, config, save
        self.documents, self.observers, self.measure = documents, observers, measure
        self.dtype = getattr(torch, config.dtype)
        self.optimizers = build_optimizers(model, config.optimizer, self.dtype)
        self.log = MetricsLog(run)
        self.state = TrainerState(steps=config.steps)
        self.evaluation: Evaluation | None = None
        self._recent_seconds: deque[float] = deque(maxlen=_RECENT)
        checkpoint.remove_leftovers(run)
        if resume_from is not None:
            self._restore(resume_from)
        self.log.rewind(self.state.step)
        checkpoint.mark_best(self.run, self.state.best_step, self.state.best_loss)
        if config.compile:
            for block in model.blocks:
                block.compile()

    def train(self) -> TrainingResult:
        """Train to the end, or until SIGINT or SIGTERM asks to stop; either way it is all saved.

        Raises:
            ClearheadError: The loss is no longer finite, memory or disk is full.
        """
        self.model.train()
        self._tell(self._started())
        stop = StopRequest()
        with stop:
            while self.state.steps is None or self.state.step < self.state.steps:
                if self._evaluation_is_due():
                    began = time.perf_counter()
                    self._save()
                    self._evaluate()
                    self._spend(time.perf_counter() - began)
                    if self._is_patience_over():
                        self.state = replace(self.state, steps=self.state.step)
                        break
                    if self._may_plan():
                        self._plan()
                if stop.requested:
                    break
                self._measure()
                self._step()
        path = self._save()
        finished = self.state.step == self.state.steps
        if finished:
            self._measure()
            if self.evaluation is None or self.state.evaluated_step != self.state.step:
                self._evaluate()
        state = self.state
        return TrainingResult(
            state.step, finished, path, self.evaluation, state.best_step, state.best_loss
        )

    def _started(self) -> Started:
        return Started(
            step=self.state.step,
            steps=self.state.steps,
            n_parameters=self.model.n_parameters(),
            train_tokens=self.objective.train_tokens,
            held_out_tokens=self.objective.held_out_tokens,
            tokenizer=self.tokenizer.name,
            device=str(self.model.device),
            dtype=self.config.dtype,
        )

    def _step(self) -> None:
        state, began = self.state, time.perf_counter()
        factor = rate_factor(self.config.schedule, state.step, state.steps)
        set_learning_rate(self.optimizers, factor)
        rows = self.objective.at(state.step).to(self.model.device)
        gradient = self._gradient(rows)
        apply_gradient(self.optimizers)
        seconds = time.perf_counter() - began
        tokens_per_second = rows.inputs.numel() / seconds
        self.state = replace(state, step=state.step + 1)
        self._spend(seconds)
        self.log.append(
            {
                "step": state.step,
                "loss": gradient.loss,
                "grad_norm": gradient.norm,
                "lr_factor": factor,
                "tokens_per_second": round(tokens_per_second, 1),
                "seconds": round(self.state.seconds, 3),
            }
        )
        self._recent_seconds.append(seconds)
        if self.state.steps is None and self._may_plan():
            self._plan()
        left = self._seconds_left()
        steps = self.state.steps
        self._tell(Stepped(self.state.step, steps, gradient.loss, tokens_per_second, left))

    def _gradient(self, rows: Rows) -> Gradient:
        random = random_state()
        try:
            gradient = compute_gradient(
                self.model,
                rows,
                micro_batch_size=self.config.micro_batch_size or len(rows),
                dtype=self.dtype,
                max_grad_norm=self.config.optimizer.max_grad_norm,
                loss=self.objective.loss,
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            restore_random_state(*random)
            raise ClearheadError(
                f"out of memory at step {self.state.step}; everything is saved in {self._save()}: "
                f"go on with --resume and a --micro-batch-size below "
                f"{self.config.micro_batch_size or len(rows)}, which keeps the effective batch"
            ) from error
        if not gradient.finite:
            where = first_non_finite(self.model, rows, self.objective.loss, self.dtype)
            whole = checkpoint.list_checkpoints(self.run)
            last = f"the last good checkpoint is {whole[-1]}" if whole else "no checkpoint yet"
            raise ClearheadError(
                f"the loss is {gradient.loss} and the gradient's norm {gradient.norm} at step "
                f"{self.state.step}; it begins in {where}; {last}; "
                "try a lower learning rate or a longer warm-up"
            )
        return gradient

    def _spend(self, seconds: float) -> None:
        self.state = replace(self.state, seconds=self.state.seconds + seconds)

    def _evaluation_is_due(self) -> bool:
        step, steps = self.state.step, self.state.steps
        every = self.config.evaluate_every or (-(-steps // _EVALUATIONS) if steps else 0)
        return every > 0 and step - self.state.evaluated_step >= every

    def _evaluate(self) -> None:
        self.evaluation = self.objective.evaluate(self.model, self.dtype)
        self.state = replace(self.state, evaluated_step=self.state.step, stale=self.state.stale + 1)
        loss = self.evaluation.loss
        is_best = self.state.best_loss is None or loss < self.state.best_loss
        if is_best:
            self.state = replace(self.state, best_step=self.state.step, best_loss=loss, stale=0)
            checkpoint.mark_best(self.run, self.state.step, loss)
        self.log.append({"step": self.state.step, **self.evaluation.document()})
        checkpoint.prune(self.run, self.config.keep_checkpoints, self.state.best_step)
        self._tell(Evaluated(self.state.step, self.evaluation, is_best))

    def _is_patience_over(self) -> bool:
        return self.config.patience is not None and self.state.stale >= self.config.patience

    def _measure(self) -> None:
        every, began = self.config.measure_every, time.perf_counter()
        if self.measure and every and self.state.step % every == 0:
            self.log.append({"step": self.state.step, **self.measure(self.model)})
            self._spend(time.perf_counter() - began)

    def _may_plan(self) -> bool:
        """Say whether it is time to decide how many steps fit into the minutes given."""
        state, minutes = self.state, self.config.minutes
        if minutes is None or len(self._recent_seconds) < _PLAN_AFTER:
            return False
        if state.steps is None:
            a_quarter_is_over = state.seconds > 0.25 * minutes * 60
            return len(self._recent_seconds) == _RECENT or a_quarter_is_over
        # The plan may still be mended while the learning rate does not depend on it.
        schedule = self.config.schedule
        return schedule.kind == "wsd" and rate_factor(schedule, state.step, state.steps) == 1

    def _plan(self) -> None:
        state, seconds = self.state, 60 * (self.config.minutes or 0.0)
        left = seconds - state.seconds
        a_step = median(self._recent_seconds)
        # A forward pass is a third of a step, and evaluations are forward passes.
        an_evaluation = a_step / 3 * self.objective.evaluation_cost
        if every := self.config.evaluate_every:
            steps = (left - an_evaluation) / (a_step + an_evaluation / every)
        else:
            steps = (left - an_evaluation * _EVALUATIONS * left / seconds) / a_step
        self.state = replace(state, steps=state.step + max(1, int(steps)))

    def _seconds_left(self) -> float | None:
        if self.state.steps is None:
            return None
        return (self.state.steps - self.state.step) * self.state.seconds / self.state.step

    def _save(self) -> Path:
        path = checkpoint.checkpoint_path(self.run, self.state.step)
        if path.exists():
            return path
        self.log.sync()
        random_tensors, random_document = random_state()
        self.save(
            path,
            self.model,
            self.tokenizer,
            tensors={
                "optimizer": optimizer_tensors(self.model, self.optimizers),
                "random": random_tensors,
            },
            documents={
                **self.documents,
                "trainer": asdict(self.state),
                "random": random_document,
            },
        )
        self._tell(Saved(path))
        return path

    def _restore(self, path: Path) -> None:
        self.state = TrainerState(**checkpoint.load_document(path, "trainer"))
        tensors = checkpoint.load_tensors(path, "optimizer")
        load_optimizer_tensors(self.model, self.optimizers, tensors)
        random_tensors = checkpoint.load_tensors(path, "random")
        restore_random_state(random_tensors, checkpoint.load_document(path, "random"))

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(
        error
    )
