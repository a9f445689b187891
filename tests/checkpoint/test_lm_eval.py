"""lm-eval's own loader takes a checkpoint as it is, and finds our log-likelihoods."""

import warnings

import pytest
import torch

from clearhead.checkpoint import save
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import build_tokenizer

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_loads_it_and_finds_our_log_likelihoods(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

    tokenizer = build_tokenizer("bytes")
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=257, context_length=64, d_model=32, n_heads=4, n_layers=2))
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save(tmp_path / "model", model, tokenizer)
    theirs = HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32", batch_size=1)
    pairs = [("The cat sat", " on the mat"), ("1 + 1 =", " 2")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    found = theirs.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (log_likelihood, _) in zip(pairs, found, strict=True):
        ids = torch.tensor([tokenizer.encode(context + continuation).tolist()])
        start = len(tokenizer.encode(context))
        with torch.no_grad():
            logs = model(ids)[0].log_softmax(-1)
        ours = sum(float(logs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))
        assert log_likelihood == pytest.approx(ours, abs=1e-4)
