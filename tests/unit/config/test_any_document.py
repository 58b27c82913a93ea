"""Loading any configuration file gives settings or a ConfigError, and raises no other exception."""

import json
import re
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from configured import load
from hypothesis import assume, example, given
from hypothesis import strategies as st

from exporter.config.document import read_document
from exporter.config.fields import format_duration, parse_duration
from exporter.config.problems import ConfigError
from exporter.config.settings import Settings
from exporter.sources.cams.settings import CamsAccount, CamsSpace

ENVIRON = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIexample", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}
SPACE_KEYS = [field.name for field in fields(CamsSpace)]
KEYS = sorted({*Settings.model_fields, *CamsAccount.model_fields, *SPACE_KEYS})

texts = st.text(st.characters(codec="utf-8"), max_size=20)
plausible = st.sampled_from(
    "acme 5 0 nan 30s 5m 1h30m https://cams.example http://localhost:1 http://[::1] https://[x * ** null ~".split()
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | texts | plausible
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=4),
    max_leaves=15,
)


def mappings_of(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Return mappings with some of the keys. The value of a key is from its strategy or an arbitrary document."""
    return st.fixed_dictionaries({}, optional={key: value | documents for key, value in fields.items()})


text_values = dict.fromkeys(KEYS, plausible | texts)
spaces = st.lists(mappings_of({name: text_values[name] for name in SPACE_KEYS}), max_size=3)
patterns = st.lists(st.sampled_from(["*", "**/x", "x\0/*"]) | texts, min_size=1, max_size=3)
qps = plausible | st.floats(0, 10).map(repr) | st.sampled_from(["1e-320", "1e-9", "0.001", "1_0", "10.0000001"])
accounts = mappings_of(
    {
        **{name: text_values[name] for name in CamsAccount.model_fields},
        "spaces": spaces,
        "space_files": patterns,
        "qps": qps,
    }
)
configurations = mappings_of(
    {**{name: text_values[name] for name in Settings.model_fields}, "accounts": st.lists(accounts, max_size=3)}
)


def load_text(text: str) -> Settings | ConfigError:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "config.yml"
        path.write_bytes(text.encode())
        try:
            return load(path, ENVIRON)
        except ConfigError as error:
            return error


@given(configurations | documents)
@example({"accounts": [{"name": "acme", "space_files": ["x\0/*"]}]})
def test_loading_any_document_gives_settings_or_a_config_error(document: object) -> None:
    found = load_text(yaml.safe_dump(document, allow_unicode=True))

    if isinstance(found, ConfigError):
        assert found.problems
        prefixes = (
            "expected|unknown key|required key is missing|duplicate|invalid YAML|cannot read the file|too many levels"
        )
        assert all(re.search(f": ({prefixes})", line) for line in map(str, found.problems))
        assert not any("Input should" in problem.text for problem in found.problems)  # pydantic's own words


@given(st.text(st.characters(codec="utf-8")) | st.text("abc:-[]{}&*!|>'\"%@`#,? \n\t~", max_size=40))
def test_loading_any_text_gives_settings_or_a_config_error(text: str) -> None:
    assert isinstance(load_text(text), Settings | ConfigError)


@given(documents)
@example({"\\": ["\U0001f600", "\x7f", "\u2028", None, True, 1e300, -0.0, float("inf")]})
def test_any_json_document_is_read_the_same_from_a_json_file_and_a_yaml_file(document: object) -> None:
    text = json.dumps(document, default=str)
    assume(r"\\\u" not in text)  # an escaped backslash before a surrogate pair, which the YAML reader rejects
    with TemporaryDirectory() as directory:
        read = []
        for name in ("document.json", "document.yml"):
            (Path(directory) / name).write_text(text)
            read.append(read_document(Path(directory) / name))

    assert read[0] == read[1]


@given(st.text(st.characters(codec="utf-8")) | st.text('[]{}:,"\\u019dDe.-trufalsn \n', max_size=40))
def test_reading_any_text_in_a_json_file_gives_a_document_or_a_config_error(text: str) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "document.json"
        path.write_bytes(text.encode())
        try:
            read = json.dumps(read_document(path), ensure_ascii=False)
        except ConfigError as error:
            read = str(error)
            assert re.search(": (expected|duplicate|invalid YAML|cannot read the file|too many levels)", read)
        read.encode()


@given(st.integers(min_value=1, max_value=3650 * 86_400_000))
def test_parsing_a_formatted_duration_gives_the_same_duration(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds
