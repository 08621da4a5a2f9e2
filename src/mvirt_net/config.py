"""The configuration file: TOML in, a checked `DaemonConfig` out.

There are three kinds of checks, each made in one place. The form of the file (tables, unknown and
missing keys) is looked after here; the form of each value by the converter of its field in
`model`; what fits together by `registry.plan`. All of them come before anything is opened.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from .errors import ConfigError, ConfigFileError
from .model import ApiSpec, DaemonConfig, NetworkSpec, NicSpec, PollingSpec, SocketAccess
from .registry import plan

_T = TypeVar("_T")


def load(
    path: Path,
    socket_dir: Path,
    access: SocketAccess = SocketAccess(),  # noqa: B008  (frozen)
    fallback: SocketAccess = SocketAccess(),  # noqa: B008
) -> DaemonConfig:
    """Read and check a configuration file.

    Args:
        path: the file.
        socket_dir: where a NIC without `socket_path` gets its socket, ``NAME.sock``, and what a
            relative `socket_path` starts from.
        access: what counts for NICs that say nothing else, more than the file's own ``[defaults]``.
        fallback: what counts when these are silent, too, and for the sockets of the API.

    Returns:
        Networks and NICs in the file's order; each NIC has its socket path, and only the addresses
        that are written down: `registry.plan` gives it the others.

    Raises:
        ConfigFileError: with everything that was found wrong.
        OSError: the file cannot be read.
    """
    problems: Sequence[ConfigError]
    try:
        file = _structure(_read_toml(path.read_bytes()))
    except ConfigError as error:
        problems = [error]
    except cattrs.BaseValidationError as error:
        problems = list(_problems(error, ""))
    else:
        defaults = access.with_defaults(file.defaults).with_defaults(fallback)
        nics = tuple(_with_socket(nic, socket_dir).with_defaults(defaults) for nic in file.nic)
        config = DaemonConfig(
            file.network,
            nics,
            file.polling,
            defaults,
            socket_dir,
            file.state,
            file.api.with_defaults(fallback),
        )
        problems = plan(config).problems
        if not problems:
            return config
    raise ConfigFileError(path, problems)


def _state(value: Any) -> Path | Literal[False] | None:
    if value is None:
        return None
    if value is False:
        return False
    if not isinstance(value, str | Path) or not Path(value).is_absolute():
        raise ConfigError("state", f"{value!r} is neither an absolute path nor false")
    return Path(value)


@attrs.frozen
class _File:
    """The file as it is written: a key, three tables and two arrays of tables."""

    state: Path | Literal[False] | None = attrs.field(default=None, converter=_state)

    defaults: SocketAccess = attrs.field(factory=SocketAccess)
    polling: PollingSpec = attrs.field(factory=PollingSpec)
    api: ApiSpec = attrs.field(factory=ApiSpec)
    network: tuple[NetworkSpec, ...] = ()
    nic: tuple[NicSpec, ...] = ()


def _read_toml(text: bytes) -> dict[str, Any]:
    """Raises ConfigError without a key: where it went wrong is a line, and part of the message."""
    try:
        return tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        raise ConfigError("", f"not UTF-8 text (at byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("", str(error)) from error
    except RecursionError as error:
        raise ConfigError("", "nested too deeply") from error


def _with_socket(nic: NicSpec, socket_dir: Path) -> NicSpec:
    path = Path(f"{nic.name}.sock") if nic.socket_path is None else nic.socket_path
    # An empty path stays one, for `plan` to refuse; joined it would be the folder.
    return attrs.evolve(nic, socket_path=socket_dir / path if path.name else path)


def _table(hook: Callable[[Any, Any], _T]) -> Callable[[Any, Any], _T]:
    """`hook` for a value that must be a table."""

    def structure(value: object, cls: type) -> _T:
        if not isinstance(value, dict):
            raise TypeError("not a table")
        return hook(value, cls)

    return structure


def _make_converter() -> cattrs.Converter:
    """A converter that lets each field's own attrs converter judge, and collects all they say."""
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)

    def by_field(field: attrs.Attribute[Any]) -> Callable[[Any, Any], Any]:
        convert = field.converter
        assert callable(convert)
        return lambda value, _type: convert(value)

    def array_of_tables(value: object, array_type: type) -> object:
        if not isinstance(value, list):
            raise TypeError("not an array of tables (its header needs double brackets)")
        return converter.structure(value, array_type)

    for cls in (NetworkSpec, NicSpec, SocketAccess, PollingSpec, ApiSpec):
        hooks: dict[str, Any] = {
            field.name: override(struct_hook=by_field(field)) for field in attrs.fields(cls)
        }
        converter.register_structure_hook(
            cls, _table(make_dict_structure_fn(cls, converter, **hooks))
        )
    arrays: dict[str, Any] = {
        name: override(struct_hook=array_of_tables) for name in ("network", "nic")
    }
    arrays["state"] = override(struct_hook=lambda value, _type: _state(value))
    converter.register_structure_hook(_File, make_dict_structure_fn(_File, converter, **arrays))
    return converter


def _structure(tables: dict[str, Any]) -> _File:
    """Raises cattrs.BaseValidationError, a tree whose notes tell the way to each problem."""
    return _make_converter().structure(tables, _File)


def _problems(error: BaseException, path: str) -> Iterator[ConfigError]:
    """The leaves of what `_structure` raised, each with its path."""
    if isinstance(error, cattrs.IterableValidationError):
        for inner, index in error.group_exceptions()[0]:
            yield from _problems(inner, f"{path}[{index.index}]")
    elif isinstance(error, cattrs.ClassValidationError):
        with_name, without = error.group_exceptions()
        for inner, name in with_name:
            yield from _problems(inner, f"{path}.{name.name}".lstrip("."))
        for inner in without:
            yield from _problems(inner, path)
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield ConfigError(f"{path}.{key}".lstrip("."), _unknown(key, error.cl))
    elif isinstance(error, KeyError):
        yield ConfigError(path, "missing")
    else:
        yield ConfigError(path, error.problem if isinstance(error, ConfigError) else str(error))


def _unknown(key: str, cls: type[attrs.AttrsInstance]) -> str:
    near = difflib.get_close_matches(key, [field.name for field in attrs.fields(cls)], n=1)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key"
