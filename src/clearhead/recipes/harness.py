"""lm-eval's tasks on our checkpoints: `python -m clearhead.recipes.harness --model clearhead …`.

The adapter is registered as the entry point `clearhead` of the group `lm_eval.models`, too. lm-eval
0.4.13 reads no entry points; run as a module, this file registers it and calls lm-eval's command.
"""

from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from clearhead.engine import SamplingConfig
from clearhead.evaluate import Continuation, encode_pair, score_continuations
from clearhead.recipes.generate import generate
from clearhead.recipes.load import load

_GENERATED = 256


@register_model("clearhead")
class ClearheadLM(LM):  # type: ignore[misc]
    """A checkpoint of ours as lm-eval sees a model.

    Args:
        path: A checkpoint, or a run's folder.
        device: Where to compute.
        batch_tokens: The most tokens of a batch.
        options: What lm-eval hands to every model, such as batch_size; they decide nothing here.
    """

    def __init__(
        self, path: str, device: str | None = None, batch_tokens: int = 4096, **options: Any
    ) -> None:
        super().__init__()
        del options
        self.model, self._tokenizer = load(Path(path), device=device or "auto")
        self._batch_tokens = batch_tokens

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-probability, and whether it is greedy."""
        asked = [encode_pair(self._tokenizer, *request.args) for request in requests]
        found = score_continuations(self.model, asked, batch_tokens=self._batch_tokens)
        return [(score.log_probability, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Return the log-probability of each text, in windows as lm-eval cuts them."""
        length, end = self.model.config.context_length, self._tokenizer.end_of_text
        asked: list[Continuation] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self._tokenizer.encode_ordinary(request.args[0]).tolist()
            for window in get_rolling_token_windows(ids, end, length, 1):
                context, continuation = make_disjoint_window(window)
                asked.append(Continuation(tuple(context), tuple(continuation)))
                owners.append(number)
        found = score_continuations(self.model, asked, batch_tokens=self._batch_tokens)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, found, strict=True):
            totals[owner] += score.log_probability
        return totals

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """Return what the model writes after each context, up to a stop text."""
        texts = []
        for request in requests:
            context, given = request.args
            until = given.get("until") or []
            sampling = SamplingConfig(
                temperature=float(given.get("temperature", 0.0)) if given.get("do_sample") else 0.0,
                max_new_tokens=int(given.get("max_gen_toks", _GENERATED)),
                seed=0,
            )
            (written,) = generate(
                self.model,
                self._tokenizer,
                context,
                sampling=sampling,
                stop=[until] if isinstance(until, str) else [stop for stop in until if stop],
                truncate="left",
            )
            texts.append(written.text)
        return texts


if __name__ == "__main__":
    from importlib import import_module

    from lm_eval.__main__ import cli_evaluate

    import_module("lm_eval.models")  # registers lm-eval's own
    cli_evaluate()
