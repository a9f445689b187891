"""Checkpoints of 8 and 4 bits: made, certified, loaded, and kept out of where they don't belong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead import checkpoint
from clearhead.cli.main import main
from clearhead.engine import SamplingConfig
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig
from clearhead.quantize import is_quantized
from clearhead.recipes.generate import generate
from clearhead.recipes.load import load
from clearhead.recipes.quantize import Quantized, quantize_checkpoint, verify_quantized
from clearhead.tokenizer import build_tokenizer

TEXT = "the cat sat on the mat and the dog sat on the log; " * 600


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer("bytes")
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=64,
        d_model=96,
        n_heads=4,
        n_layers=2,
        tied_head=request.param,
    )
    path = tmp_path_factory.mktemp("model") / "source"
    checkpoint.save(path, GPT(config), tokenizer)
    return path


@pytest.fixture(scope="module", params=[8, 4])
def made(
    request: pytest.FixtureRequest,
    source: Path,
    text: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Quantized:
    return quantize_checkpoint(
        source,
        tmp_path_factory.mktemp("quantized") / "model",
        bits=request.param,
        calibrate=str(text),
        text=str(text),
    )


def test_the_certificate_tells_what_was_lost(made: Quantized, source: Path, text: Path) -> None:
    certificate = made.certificate
    model, tokenizer = load(made.path)
    before, _ = load(source)
    assert is_quantized(model)
    assert certificate.bytes_after < certificate.bytes_before * (certificate.bits + 3) / 32
    stored = sum(tensor.nbytes for tensor in load_file(made.path / "model.safetensors").values())
    assert certificate.bytes_after == stored
    assert certificate.bytes_per_token_after < certificate.bytes_after
    cost = certificate.cost
    assert abs(cost.loss) < {8: 0.001, 4: 0.03}[certificate.bits]
    assert 0 < cost.kl_divergence < 0.01
    ids = torch.from_numpy(tokenizer.encode(TEXT).astype("int64"))[:6400].view(-1, 64)
    with torch.no_grad():
        p, q = before(ids).log_softmax(-1), model(ids).log_softmax(-1)
    assert (p.exp() * (p - q)).sum(-1).mean() == pytest.approx(cost.kl_divergence, rel=0.2)
    assert json.loads((made.path / "clearhead/certificate.json").read_text())["bits"] in (8, 4)
    assert certificate.calibration == (str(text) if certificate.bits == 4 else None)


def test_it_is_verified_alone_and_against_its_source(made: Quantized, source: Path, text: Path):
    alone = verify_quantized(made.path)
    assert alone == made.certificate
    again = verify_quantized(made.path, source, text=str(text))
    assert again.cost.loss == pytest.approx(made.certificate.cost.loss, abs=1e-6)
    with pytest.raises(ClearheadError, match="was not made from"):
        verify_quantized(made.path, made.path)


def test_it_generates_and_is_saved_again(made: Quantized, tmp_path: Path) -> None:
    model, tokenizer = load(made.path)
    sampling = SamplingConfig(temperature=0, max_new_tokens=12)
    [found] = generate(model, tokenizer, "the cat", sampling=sampling)
    checkpoint.save(tmp_path / "again", model, tokenizer)
    other, _ = load(tmp_path / "again")
    [same] = generate(other, tokenizer, "the cat", sampling=sampling)
    assert same.text == found.text
    half, _ = load(made.path, dtype=torch.bfloat16)
    [_] = generate(half, tokenizer, "the cat", sampling=sampling)


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "{}", "{}-out", "--to", "gguf"],
        ["import", "{}", "{}-out"],
        ["quantize", "{}", "{}-out"],
        ["lens", "mixing", "{}"],
        ["finetune", "classify", "{}", "--data", "rows.csv", "--out", "{}-out"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_who_wants_all_bits_says_so(
    made: Quantized, arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "a,b\nc,d\n" * 40)
    filled = [one.format(made.path).replace("rows.csv", str(rows)) for one in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert "its weights are quantised; give the checkpoint that it was made from" in error
    assert len([line for line in error.splitlines() if line.startswith("error")]) == 1


def test_info_tells_bits(made: Quantized, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(made.path)]) == 0
    assert f"({made.certificate.bits} bits, groups of 64)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["verify", str(made.path)]) == 0
    assert "perplexity" in capsys.readouterr().out


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("head.scales"), "missing head.scales"),
        (lambda t: t.update(more=torch.ones(1)), "surplus more"),
        (lambda t: t.update({"head.scales": t["head.scales"].float()}), "head.scales is F32"),
        (lambda t: t.update({"head.codes": t["head.codes"][:5].clone()}), "head.codes is"),
        (lambda t: t["head.scales"].fill_(float("nan")), "not finite in head.scales"),
    ],
)
def test_damage_is_told(
    made: Quantized, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in made.path.glob("*.json"):
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(made.path / "model.safetensors")
    change(tensors)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ClearheadError, match=message):
        load(broken)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "clearhead", "version": 2, "bits": 3, "group_size": 64}, "bits 3"),
        ({"quant_method": "clearhead", "version": 2, "bits": 8, "group_size": []}, "group_size"),
        ({"quant_method": "clearhead", "bits": 4, "group_size": 64}, "another version"),
        ({"quant_method": "gptq", "bits": 8}, "its weights are quantised"),
        ([], "its weights are quantised"),
    ],
)
def test_a_config_that_says_what_there_is_not(
    made: Quantized, quantization: object, message: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in made.path.glob("*.*"):
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((made.path / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    with pytest.raises(ClearheadError, match=message):
        load(broken)


def test_a_loss_beyond_the_limit_is_not_kept_unless_asked_for(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clearhead.recipes.quantize.COSTS", {8: -1.0, 4: -1.0})
    out = tmp_path / "out"
    with pytest.raises(ClearheadError, match=r"8 bits may cost; nothing was kept"):
        quantize_checkpoint(source, out, text=str(text))
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []
    kept = quantize_checkpoint(source, out, text=str(text), accept_loss=True)
    assert kept.path == out
    assert out.is_dir()


def test_mistakes(source: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ClearheadError, match="bits is 3; it must be 8 or 4"):
        quantize_checkpoint(source, tmp_path / "out", bits=3, text=str(text))
    with pytest.raises(ClearheadError, match="group is 7"):
        quantize_checkpoint(source, tmp_path / "out", group=7, text=str(text))
    with pytest.raises(ClearheadError, match="exists already"):
        quantize_checkpoint(source, tmp_path, text=str(text))
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(ClearheadError, match="tokens"):
        quantize_checkpoint(source, tmp_path / "out", text=str(short))
