"""What the user has allowed beyond the default of running nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from nndiag.errors import UsageError


@dataclass(frozen=True)
class Permission:
    """``trust`` lets pickled modules and torch.export archives in; ``names`` are further globals of a pickle.

    A name is dotted, ``"argparse.Namespace"``, and looked up when it is allowed: by the user, never by a file.
    """

    trust: bool = False
    names: frozenset[str] = frozenset()
    objects: tuple[tuple[Callable[..., Any], str], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, trust: bool = False, names: Iterable[str] = ()) -> Permission:
        """Look the names up.

        Raises:
            UsageError: a name is none, or is not there.
        """
        wanted = tuple(dict.fromkeys(names))
        objects = tuple((_found(name), name) for name in wanted)
        return cls(trust, frozenset(wanted), objects + (_kinds() if "numpy.dtype" in wanted else ()))


NOTHING = Permission()
"""The default."""

KNOWN_DATA = frozenset(
    "argparse.Namespace collections.defaultdict collections.deque decimal.Decimal fractions.Fraction uuid.UUID"
    " datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone typing.Any"
    " builtins.set builtins.frozenset builtins.complex builtins.slice builtins.range builtins.object"
    " builtins.bytes builtins.dict builtins.list builtins.tuple"
    " pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePath pathlib.PurePosixPath"
    " pathlib.PureWindowsPath pathlib._local.PosixPath pathlib._local.WindowsPath"
    " pathlib._local.PurePosixPath pathlib._local.PureWindowsPath"
    " numpy.ndarray numpy.dtype numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct"
    " numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct"
    " numpy.bool_ numpy.float16 numpy.float32 numpy.float64 numpy.int8 numpy.int16 numpy.int32 numpy.int64"
    " numpy.uint8 numpy.uint16 numpy.uint32 numpy.uint64"
    " omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.Metadata"
    " omegaconf.base.ContainerMetadata omegaconf.nodes.AnyNode omegaconf.nodes.BooleanNode"
    " omegaconf.nodes.FloatNode omegaconf.nodes.IntegerNode omegaconf.nodes.StringNode".split()
)
"""Classes, and two functions of numpy, that make plain data and do nothing else, whoever calls them."""

_SAFE_TO_LOOK_IN = frozenset(name.rpartition(".")[0] for name in KNOWN_DATA) - {"builtins"}
# Packages whose classes open files or run code as they are made; of the standard library any may.
_DANGEROUS = sys.stdlib_module_names | frozenset(
    "torch numpy cloudpickle dill joblib pip setuptools pkg_resources fsspec h5py safetensors cffi pytest"
    " _pytest IPython psutil torchvision pandas nndiag".split()
)


def is_known_data(name: str) -> bool:
    """Return whether a global is well known to make plain data, so that it may be suggested to the user."""
    return name in KNOWN_DATA or name.rpartition(".")[0] == "numpy.dtypes"


def is_dangerous(name: str) -> bool:
    """Return whether a global can run commands, open files or import code by itself, and is never data.

    Of the standard library, numpy and torch all is but what is known; of others what their names give away.
    """
    module, _, last = name.rpartition(".")
    if is_known_data(name) or module == "torch.torch_version":
        return False
    return module.partition(".")[0] in _DANGEROUS or last.startswith(("load", "exec", "eval", "_load"))


def _is_offered(found: object, name: str) -> bool:
    """Return whether what a name stands for may be built: plain data, or a class that is not from elsewhere."""
    if is_known_data(name):
        return True
    return isinstance(found, type) and not is_dangerous(f"{found.__module__}.{found.__qualname__}")


def _kinds() -> tuple[tuple[Callable[..., Any], str], ...]:
    """Return numpy's element types: ``numpy.dtype`` makes one of them, which torch asks for and no pickle names."""
    module = import_module("numpy.dtypes")
    names = sorted(name for name in vars(module) if name.endswith("DType"))
    return tuple((getattr(module, name), f"numpy.dtypes.{name}") for name in names)


def _found(name: str) -> Callable[..., Any]:
    module, _, last = name.rpartition(".")
    option = f"--allow-global {name}"
    if not module or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            option, "is not the dotted name of a class or function", "write it as in the refusal, module.Name"
        )
    code = UsageError(
        option, "can run code or open files, and is not data", "load the file where you trust it instead"
    )
    # of a module that holds data the user may have mistyped a name: whether it is there comes first
    if is_dangerous(name) and module not in _SAFE_TO_LOOK_IN:
        raise code
    try:
        found = getattr(import_module(module), last)
    # importing runs the module, which may raise anything
    except Exception as error:
        raise UsageError(option, "there is no such name here", "install what it comes from") from error
    if not callable(found):
        raise UsageError(option, "is neither a class nor a function", "name the one in the refusal")
    if not _is_offered(found, name):
        raise code
    return found  # type: ignore[no-any-return]
