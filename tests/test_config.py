"""Config dataclasses to and from dictionaries and TOML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.config import from_dict, load, load_toml, to_dict, write_toml
from clearhead.errors import ClearheadError


@dataclass(frozen=True)
class Optimiser:
    kind: Literal["adamw", "muon"] = "adamw"
    rate: float = 3e-4
    betas: tuple[float, ...] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ClearheadError(f"rate is {self.rate}; it must be above 0")


@dataclass(frozen=True)
class Run:
    out: Path
    steps: int = 10
    minutes: float | None = None
    compile: bool = False
    data: tuple[str, ...] = ("pydocs",)
    stop: list[str] = field(default_factory=list)
    keep: Literal[1, 3, "all"] = 3
    optimiser: Optimiser = field(default_factory=Optimiser)


VALID = {
    "out": "runs/one",
    "steps": 5,
    "minutes": 2,
    "data": ["a.txt", "b.txt"],
    "keep": "all",
    "optimiser": {"kind": "muon", "betas": [0.9, 1]},
}


def test_values_become_the_fields_own_types() -> None:
    run = from_dict(Run, VALID, "run.toml")
    assert run == Run(
        out=Path("runs/one"),
        steps=5,
        minutes=2.0,
        data=("a.txt", "b.txt"),
        keep="all",
        optimiser=Optimiser("muon", betas=(0.9, 1.0)),
    )
    assert type(run.minutes) is float
    assert type(run.optimiser.betas[1]) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "ten"}, "run.toml: steps is 'ten'; it must be a whole number"),
        ({"steps": True}, "run.toml: steps is True; it must be a whole number"),
        ({"steps": 1.0}, "run.toml: steps is 1.0; it must be a whole number"),
        ({"compile": 1}, "run.toml: compile is 1; it must be true or false"),
        ({"minutes": "2"}, "run.toml: minutes is '2'; it must be a number"),
        ({"minutes": 10**400}, "; it must be a number"),
        ({"out": 3}, "run.toml: out is 3; it must be a path"),
        ({"data": "pydocs"}, "data is 'pydocs'; it must be a list, each item a text"),
        ({"data": ["a", 3]}, "run.toml: data[1] is 3; it must be a text"),
        ({"keep": "some"}, "keep is 'some'; it must be one of 1, 3, 'all'"),
        ({"keep": True}, "keep is True; it must be one of 1, 3, 'all'"),
        ({"optimiser": 3}, "run.toml: optimiser is 3; it must be a table"),
        ({"optimiser": {"kind": "sgd"}}, "optimiser.kind is 'sgd'; it must be one of 'adamw'"),
        ({"optimiser": {"kind": []}}, "optimiser.kind is []; it must be one of"),
        ({"optimiser": {"rat": 1.0}}, "unknown key 'optimiser.rat'; did you mean 'rate'?"),
        ({"optimiser": {"rate": -1}}, "run.toml: optimiser: rate is -1.0; it must be above 0"),
        ({"step": 3}, "run.toml: unknown key 'step'; did you mean 'steps'?"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ClearheadError) as caught:
        from_dict(Run, {"out": "x", **values}, "run.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ClearheadError, match=r"run\.toml: out is missing; it must be a path"):
        from_dict(Run, {}, "run.toml")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
runs = st.builds(
    Run,
    out=st.sampled_from([Path("a/b"), Path("/c d")]),
    steps=st.integers(-(2**63), 2**63 - 1),
    minutes=st.none() | floats,
    compile=st.booleans(),
    data=st.lists(texts).map(tuple),
    stop=st.lists(texts),
    keep=st.sampled_from([1, 3, "all"]),
    optimiser=st.builds(
        Optimiser,
        kind=st.sampled_from(["adamw", "muon"]),
        rate=st.floats(1e-9, 1),
        betas=st.lists(floats).map(tuple),
    ),
)


@given(runs)
def test_toml_holds_every_config(tmp_path_factory: pytest.TempPathFactory, run: Run) -> None:
    path = tmp_path_factory.mktemp("toml") / "run.toml"
    write_toml(path, run)
    assert load(Run, path) == run
    assert from_dict(Run, to_dict(run), "memory") == run


def test_a_none_that_toml_would_lose_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Clip:
        clip: float | None = 1.0

    with pytest.raises(ValueError, match="clip=None"):
        write_toml(tmp_path / "clip.toml", Clip(None))
    assert not list(tmp_path.iterdir())


def test_a_dictionary_is_written_without_its_nones(tmp_path: Path) -> None:
    write_toml(tmp_path / "x.toml", {"a": 1, "b": None, "c": {"d": None, "e": "f"}})
    assert load_toml(tmp_path / "x.toml") == {"a": 1, "c": {"e": "f"}}


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("steps = 1\nrate = = 2\n")
    with pytest.raises(ClearheadError, match=r"run\.toml is not valid TOML: .*line 2"):
        load_toml(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClearheadError, match=r"none\.toml cannot be read: No such file"):
        load_toml(tmp_path / "none.toml")
    with pytest.raises(ClearheadError, match="cannot be read: Is a directory"):
        load_toml(tmp_path)


@given(st.binary(max_size=60) | st.just(b"a = " + b"[" * 5000))
def test_any_bytes_give_a_config_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("toml") / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ClearheadError) as caught:  # `out` at least is missing
        load(Run, path)
    assert len(str(caught.value).splitlines()) == 1
