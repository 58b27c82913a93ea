"""Reading the configuration: files and environment in, `Settings` out, or every problem at once.

All scalars are read as text, as they are written, and the schema decides their type: an id of digits stays an id, and
`no` stays `no`.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from exporter.config.credentials import CredentialProblem, CredentialReader
from exporter.config.settings import Account, Settings, Space

Place = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)
_FILE_KEYS = ("access_key_id_file", "access_key_secret_file", "security_token_file")
_SECRET_KEYS = frozenset({"access_key_secret", "access_key_id", "security_token"})
_LONGEST_FOUND = 60


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
        raise ConfigError(problems)
    return _at(settings, path.parent).with_accounts(loaded)


def _load_environment(environ: Mapping[str, str]) -> Settings:
    account = Account(name="default")
    problems = _credential_problems(account, (), _Source(None), environ)
    if problems:
        raise ConfigError(problems)
    return Settings(accounts=[account])


def read_yaml(path: Path) -> Any:
    """The document in a YAML or JSON file, every scalar as text.

    Raises:
        ConfigError: it cannot be read, is no YAML, or says one key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _TextLoader)  # noqa: S506  # safer than safe_load: it makes text only
    except OSError as error:
        raise ConfigError([Problem(str(path), (), f"expected a readable file, found: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), (), "expected UTF-8 text, found other bytes")]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(path, error)]) from error


class _TextLoader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]  # the C one where it is built
    """Every scalar is text, and a key that stands twice is an error: the first one would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value.__hash__ and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} stands twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def _yaml_problem(path: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or "not YAML"
    return Problem(str(path), (), f"expected YAML, found: {text}", mark.line + 1 if mark else None)


class _Source:
    """A file that was read, to say on which line something stands; looked at only when something is wrong."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def problem(self, place: Place, text: str) -> Problem:
        return Problem(str(self._path or "environment"), place, text, self.line(place))

    def line(self, place: Place) -> int | None:
        node, line = self._root, None
        for step in place:
            node, line = _child(node, step, line)
        return line

    @cached_property
    def _root(self) -> yaml.Node | None:
        text = self._path.read_text(encoding="utf-8") if self._path else ""
        return yaml.compose(text, _TextLoader)


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
    problems = _credential_problems(account, place, source, environ)
    listed = [_Listed(source, (*place, "spaces", i), space) for i, space in enumerate(account.spaces or ())]
    for index, pattern in enumerate(account.space_files or ()):
        files = sorted(glob(str(folder / pattern), recursive=True))
        if not files:
            text = f"expected files, found none for {pattern}"
            problems.append(source.problem((*place, "space_files", index), text))
        for file in files:
            try:
                listed += _load_spaces(Path(file))
            except ConfigError as error:
                problems += error.problems
    problems += _repeated_spaces(listed)
    if problems:
        raise ConfigError(problems)
    if account.polls_own_numbers:
        return account
    return account.model_copy(update={"spaces": [entry.space for entry in listed]})


def _credential_problems(account: Account, place: Place, source: _Source, environ: Mapping[str, str]) -> list[Problem]:
    try:
        CredentialReader(account, environ)()
    except CredentialProblem as problem:
        return [source.problem((*place, problem.key), str(problem))]
    return []


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


def _validate(
    model: type[BaseModel], document: Any, source: _Source, *, many: bool = False
) -> tuple[Any, list[Problem]]:
    adapter: TypeAdapter[Any] = TypeAdapter(list[model] if many else model)  # type: ignore[valid-type]  # built at run time
    try:
        return adapter.validate_python(document), []
    except ValidationError as error:
        return None, [_problem(details, model, source) for details in error.errors(include_url=False)]


def _problem(details: Any, model: type[BaseModel], source: _Source) -> Problem:
    place: Place = tuple(step for step in details["loc"] if step != "[key]")
    if details["type"] == "extra_forbidden":
        return source.problem(place, f"unknown key{_suggestion(model, place)}")
    found = "nothing" if details["type"] == "missing" else _found(place, details["input"])
    return source.problem(place, f"expected {_expected(details)}, found {found}")


def _expected(details: Any) -> str:
    match details["type"], details.get("ctx", {}):
        case "value_error", {"error": error}:
            return str(error)
        case (("float_parsing" | "float_type"), _):
            return "a number"
        case "greater_than", {"gt": bound}:
            return f"a number above {bound:g}"
        case "less_than_equal", {"le": bound}:
            return f"a number of at most {bound:g}"
        case (("list_type" | "too_short"), _):
            return "a list with at least one entry"
        case (("model_type" | "dict_type"), _):
            return "a mapping of keys to values"
        case (("missing" | "string_type"), _):
            return "text"
    return str(details["msg"])


def _found(place: Place, value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None or value == "":
        return "nothing"
    if place and place[-1] in _SECRET_KEYS:
        return "something else (not shown, for it may be secret)"
    text = str(value)
    return repr(text if len(text) <= _LONGEST_FOUND else text[:_LONGEST_FOUND] + "…")


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
