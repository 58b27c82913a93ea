"""Reading the configuration: files and environment in, `Settings` out, or every problem at once.

All scalars but null are read as text, as they are written, and the schema decides their type: an id of digits stays an
id, and `no` stays `no`.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError

from exporter.config.credentials import CredentialReader, variable
from exporter.config.settings import A_DURATION, Account, Settings, Space

Place = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)
_FILE_KEYS = ("access_key_id_file", "access_key_secret_file", "security_token_file")
_SECRET_KEYS = frozenset({"access_key_secret", "access_key_id", "security_token"})
_LONGEST_FOUND = 60
_LIKE_A_KEY = re.compile(r"[A-Za-z_.-]{1,40}[0-9]{0,2}")
_SURROGATES = re.compile(r"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_EXPECTED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than_equal": "a number of at most {le:g}",
    "string_type": "text",
    "list_type": "a list with at least one entry",
    "too_short": "a list with at least one entry",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
}
_EXPECTED_OF = {float: "a number", int: "a whole number", bool: "true or false"}
_GROUPS = ("list_type", "model_type", "dict_type")
"""Errors of what should have held keys, and so may hold a secret where a `- ` or a space after a colon is missing."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and what was expected and found there."""

    file: str
    place: Place
    text: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {_spell(self.place)}: {self.text}" if self.place else f"{where}: {self.text}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` are all that was found, one a line in the text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file, its space files included; without a file, one account from the environment.

    Raises:
        ConfigError: anything is wrong.
    """
    if path is None:
        return _load_environment(environ)
    document = read_yaml(path)
    source = _Source(path)
    settings, problems = _validate(Settings, document, source)
    accounts = list(_accounts(document, source))
    problems += [source.problem(place, text) for place, text in _repeated_names(accounts)]
    loaded = []
    for place, account in accounts:
        try:
            loaded.append(_load_account(account, place, source, path.parent, environ))
        except ConfigError as error:
            problems += error.problems
    if problems or settings is None:
        raise ConfigError(
            sorted(problems, key=lambda problem: (problem.file != str(path), problem.file, problem.line or 0))
        )
    return _at(settings, path.parent).with_accounts(loaded)


def _load_environment(environ: Mapping[str, str]) -> Settings:
    account = Account(name="default")
    problems = [
        Problem(
            "environment", (name,), str(problem) if environ.get(name, "").strip() else "expected text, found nothing"
        )
        for problem in CredentialReader(account, environ).problems()
        for name in [variable(problem.key)]
    ]
    if problems:
        raise ConfigError(problems)
    return Settings(accounts=[account])


def read_yaml(path: Path) -> Any:
    """The document in a YAML or JSON file, every scalar as text.

    Raises:
        ConfigError: it cannot be read, is no YAML, or says one key twice.
    """
    try:
        return yaml.load(_text(path), _TextLoader)  # noqa: S506  # safer than safe_load: it makes text only
    except OSError as error:
        raise ConfigError([Problem(str(path), (), f"expected a readable file, found: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), (), "expected UTF-8 text, found other bytes")]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(path, error)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(str(path), (), "expected a few levels, found hundreds")]) from error


def _text(path: Path) -> str:
    # JSON may spell one character as two escapes, which YAML does not know
    return _SURROGATES.sub(lambda pair: json.loads(f'"{pair[0]}"'), path.read_text(encoding="utf-8"))


class _TextLoader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]  # the C one where it is built
    """Every scalar but null is text, and a key that stands twice is an error: the first would be lost in silence."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        # a file written by a program says `null` for what is left out; `""` and `"null"` are text
        return None if node.value == "null" and not node.style else super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value.__hash__ and key.value in seen:
                problem = f"every key once, found {_shown(key.value)} twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def _yaml_problem(path: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is none"
    # what YAML's author quotes, such as an unknown alias, may be a secret that starts with an asterisk
    text = re.sub(r" '\w[^']+'", "", text.removeprefix("but "))
    expected = text if text.startswith("every key once") else f"YAML, but {text}"
    return Problem(str(path), (), f"expected {expected}", mark.line + 1 if mark else None)


class _Source:
    """A file that was read, to say on which line something stands; looked at only when something is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def problem(self, place: Place, text: str) -> Problem:
        return Problem(str(self._path), place, text, self.line(place))

    def line(self, place: Place) -> int | None:
        node, line = self._root, None
        for step in place:
            node, line = _child(node, step, line)
        return line

    @cached_property
    def _root(self) -> yaml.Node | None:
        return yaml.compose(_text(self._path), _TextLoader)


def _child(node: yaml.Node | None, step: str | int, line: int | None) -> tuple[yaml.Node | None, int | None]:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step].start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return value, key.start_mark.line + 1
    return None, line


def _accounts(document: Any, source: _Source) -> Iterator[tuple[Place, Account]]:
    """The accounts that are right in themselves, so that their files are looked at even when others are wrong."""
    entries = document.get("accounts") if isinstance(document, dict) else None
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        account, _ = _validate(Account, entry, source)
        if account:
            yield ("accounts", index), account


def _repeated_names(accounts: list[tuple[Place, Account]]) -> Iterator[tuple[Place, str]]:
    seen = set()
    for place, account in accounts:
        if account.name in seen:
            yield (*place, "name"), f"expected a name of its own, found {account.name!r} a second time"
        seen.add(account.name)


def _load_account(account: Account, place: Place, source: _Source, folder: Path, environ: Mapping[str, str]) -> Account:
    found = {name: getattr(account, name) for name in _FILE_KEYS}
    account = account.model_copy(update={name: str(folder / file) for name, file in found.items() if file})
    listed, problems = _listed(account, place, source, folder)
    reader = CredentialReader(account, environ)
    problems += [source.problem((*place, problem.key), str(problem)) for problem in reader.problems()]
    problems += _repeated_spaces(listed)
    if problems:
        raise ConfigError(problems)
    if account.polls_own_numbers:
        return account
    return account.model_copy(update={"spaces": [entry.space for entry in listed]})


def _listed(account: Account, place: Place, source: _Source, folder: Path) -> tuple[list["_Listed"], list[Problem]]:
    """The account's spaces, those of its space files included."""
    listed = [_Listed(source, (*place, "spaces", i), space) for i, space in enumerate(account.spaces or ())]
    problems = []
    for index, pattern in enumerate(account.space_files or ()):
        files = sorted(glob(pattern, root_dir=folder, recursive=True))
        if not files:
            text = f"expected at least one file, found none for {pattern!r}"
            problems.append(source.problem((*place, "space_files", index), text))
        for file in files:
            try:
                listed += _load_spaces(folder / file)
            except ConfigError as error:
                problems += error.problems
    return listed, problems


@dataclass(frozen=True, slots=True)
class _Listed:
    """A space, and where it stands."""

    source: _Source
    place: Place
    space: Space

    def __str__(self) -> str:
        return str(self.source.problem(self.place, "")).rstrip(": ")


def _load_spaces(path: Path) -> list[_Listed]:
    document = read_yaml(path)
    source = _Source(path)
    spaces, problems = _validate(Space, document, source, many=True)
    if problems or spaces is None:
        raise ConfigError(problems)
    return [_Listed(source, (index,), space) for index, space in enumerate(spaces)]


def _repeated_spaces(listed: list[_Listed]) -> Iterator[Problem]:
    first: dict[str, _Listed] = {}
    for entry in listed:
        if other := first.get(entry.space.id):
            text = f"expected a space of its own, found {entry.space.id!r}, which stands at {other} too"
            yield entry.source.problem((*entry.place, "id"), text)
        first.setdefault(entry.space.id, entry)


def _at(settings: Settings, folder: Path) -> Settings:
    file = settings.state_file
    return settings.model_copy(update={"state_file": str(folder / file)}) if file else settings


def load_document(path: Path, model: type[Model]) -> Model:
    """Any other YAML file of ours, such as a scenario, with errors of the same form.

    Raises:
        ConfigError: anything is wrong.
    """
    loaded, problems = _validate(model, read_yaml(path), _Source(path))
    if problems:
        raise ConfigError(problems)
    return cast(Model, loaded)


def located(path: Path, error: ConfigError) -> ConfigError:
    """An error about a document's meaning, with the file and the lines that its places have there."""
    source = _Source(path)
    return ConfigError(source.problem(problem.place, problem.text) for problem in error.problems)


def _validate(
    model: type[BaseModel], document: Any, source: _Source, *, many: bool = False
) -> tuple[Any, list[Problem]]:
    adapter: TypeAdapter[Any] = TypeAdapter(list[model] if many else model)  # type: ignore[valid-type]  # built at run time
    try:
        return adapter.validate_python(document), []
    except ValidationError as error:
        return None, [_problem(details, model, source) for details in error.errors(include_url=False)]


def _problem(details: Any, model: type[BaseModel], source: _Source) -> Problem:
    place: Place = details["loc"]
    if details["type"] == "extra_forbidden":
        return _unknown_key(model, place, source)
    if place[-1:] == ("[key]",):  # pydantic's mark for an error of the key itself
        place = place[:-1]
    if details["type"] == "missing":
        return source.problem(place, f"expected {_expected_of(_annotation(model, place))}, found nothing")
    found = _found(place, details["input"], group=details["type"] in _GROUPS)
    return source.problem(place, f"expected {_expected(details, model, place)}, found {found}")


def _expected(details: Any, model: type[BaseModel], place: Place) -> str:
    """What belongs there, from pydantic's error or, where that says no more than the type, from the schema."""
    context = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    if details["type"] in _EXPECTED:
        return _EXPECTED[details["type"]].format(**context)
    return _expected_of(_annotation(model, place))


def _expected_of(annotation: Any) -> str:
    arguments = get_args(annotation)
    if any(isinstance(argument, BeforeValidator) for argument in arguments):
        return A_DURATION  # the only type of ours that reads text in its own way
    plain = _plain(annotation)
    if get_origin(plain) is list:
        return _EXPECTED["list_type"]
    if get_origin(plain) is dict or (isinstance(plain, type) and issubclass(plain, BaseModel)):
        return _EXPECTED["dict_type"]
    return _EXPECTED_OF.get(plain, "text")


def _annotation(model: type[BaseModel], place: Place) -> Any:
    """The type that the schema gives to a place; of a list's or mapping's entry, that of the entry."""
    annotation: Any = list[model] if place and isinstance(place[0], int) else model  # type: ignore[valid-type]
    for step in place:
        plain = _plain(annotation)
        if get_args(plain):
            annotation = get_args(plain)[-1]
        else:
            fields = {field.alias or name: field for name, field in plain.model_fields.items()}
            annotation = fields[str(step)].rebuild_annotation()
    return annotation


def _plain(annotation: Any) -> Any:
    """The type under Annotated and beside None."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return annotation


def _found(place: Place, value: object, *, group: bool) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None or value == "":
        return "nothing"
    if group:
        return "text"
    text = str(value)
    if place[-1] in _SECRET_KEYS or "@" in text:
        return "something else (not shown, for it may be secret)"
    return repr(text if len(text) <= _LONGEST_FOUND else text[:_LONGEST_FOUND] + "…")


def _unknown_key(model: type[BaseModel], place: Place, source: _Source) -> Problem:
    if not _LIKE_A_KEY.fullmatch(str(place[-1])):
        problem = source.problem(place, "")
        return Problem(problem.file, place[:-1], "unknown key (not shown, for it may hold a secret)", problem.line)
    return source.problem(place, f"unknown key{_suggestion(model, place)}")


def _shown(key: object) -> str:
    """A key by its name, unless a colon without a space after it made a secret a part of the key."""
    return str(key) if _LIKE_A_KEY.fullmatch(str(key)) else "one (not shown, for it may hold a secret)"


def _suggestion(model: type[BaseModel], place: Place) -> str:
    for step in place[:-1]:
        field = model.model_fields.get(str(step))
        model = _nested(field.annotation) or model if field else model
    known = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(known)}"


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as list[Space] | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_nested, get_args(annotation))), None)


def _spell(place: Place) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
