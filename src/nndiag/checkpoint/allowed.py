"""The names that a torch pickle may contain: a subset of those that ``torch.load(weights_only=True)`` allows.

torch allows more, some of which allocates whatever size the file asks for (``bytearray(n)``,
``torch.Tensor(n)``), or makes tensors that the measures cannot use.
"""

from __future__ import annotations

import torch

_STORAGE_BYTES = {
    "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2, "HalfStorage": 2,
    "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8, "DoubleStorage": 8,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
STORAGES = {
    f"{module}.{name}": size for name, size in _STORAGE_BYTES.items() for module in ("torch", "torch.cuda")
} | {"torch.storage.UntypedStorage": 1}
"""Storage classes, with the bytes of one element."""

DTYPES = {
    f"torch.{name}": value.itemsize for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
"""Element types, with the bytes of one element."""

REBUILD = "torch._utils._rebuild_"
TYPED_REBUILD = "torch._tensor._rebuild_from_type_v2"
UNSUPPORTED = {
    "torch.serialization._get_layout": "a sparse tensor",
    REBUILD + "sparse_tensor": "a sparse tensor",
    REBUILD + "qtensor": "a quantised tensor",
    REBUILD + "meta_tensor_no_storage": "a meta tensor, which has no values",
    REBUILD + "nested_tensor": "a nested tensor",
    REBUILD + "wrapper_subclass": "a tensor subclass",
    REBUILD + "device_tensor_from_numpy": "a tensor of a special device",
    REBUILD + "device_tensor_from_cpu_tensor": "a tensor of a special device",
} | {
    f"torch.{name}Storage": "a quantised tensor"
    for name in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")
}
"""Names that are harmless and stand for what cannot be examined, with the words for it."""

TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
CALLS = frozenset(
    [REBUILD + name for name in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")]
    + [
        "collections.OrderedDict",
        "collections.Counter",
        "torch.Size",
        "torch.device",
        "_codecs.encode",
        TYPED_REBUILD,
    ]
    + ["builtins.set", "builtins.complex", "builtins.bytearray"]
)
"""What may be called."""

ALLOWED = CALLS.union(TENSOR_CLASSES, STORAGES, DTYPES)
"""What may be named."""
