"""Find the tensors in a file that torch.save wrote, without torch and without running its pickle.

    <name>/data.pkl, <name>/data/0, <name>/data/1, …     members of a ZIP archive, not compressed
    four pickles, the storages one after another         torch before 1.6

A pickle is a program, and one of a hundred bytes can build an object of gigabytes. Here its
instructions are carried out by a machine that knows those of torch.save alone, and that makes a
note of every tensor instead of building it. What it makes is no larger than the file.
"""

import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from analysis import CheckpointError
from analysis.files.regular import open_regular

LONGEST = 2**26  # bytes of a pickle, without its tensors
MAGIC = 0x1950A86A20F9469CFC6C  # what the first pickle of an old file holds
MOST_DIMENSIONS = 32
# A pickle may have this many instructions, and one more for every BYTES_EACH bytes of the file; a
# tensor needs about 50 of them.
INSTRUCTIONS, BYTES_EACH = 200_000, 16
DEEPEST = 50  # dicts in dicts
# Storage types of torch, by the names that torch gives the dtypes of their numbers.
STORAGES = {
    "DoubleStorage": "torch.float64",
    "FloatStorage": "torch.float32",
    "HalfStorage": "torch.float16",
    "BFloat16Storage": "torch.bfloat16",
    "LongStorage": "torch.int64",
    "IntStorage": "torch.int32",
    "ShortStorage": "torch.int16",
    "CharStorage": "torch.int8",
    "ByteStorage": "torch.uint8",
    "BoolStorage": "torch.bool",
    "ComplexFloatStorage": "torch.complex64",
    "ComplexDoubleStorage": "torch.complex128",
    "QInt8Storage": "torch.qint8",
    "QUInt8Storage": "torch.quint8",
    "QInt32Storage": "torch.qint32",
    "UntypedStorage": "torch.uint8",
    "TypedStorage": "torch.uint8",
}
SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}  # bytes of a number, by the bits in its dtype's name


class Refused(ValueError):
    """The file is broken, or its pickle does more than rebuild tensors."""


class Region(NamedTuple):
    """Where the numbers of a storage are in the file: offset and length, in bytes."""

    start: int
    length: int


@dataclass(frozen=True)
class Saved:
    """A tensor in the file.

    shape: its shape.
    dtype: torch's name of its dtype, such as torch.float32.
    storage: the key of its storage; "" if it is not a plain array of numbers.
    offset, stride: where its numbers are in the storage, in numbers.
    kind: "", or what else it is: sparse, quantised, …
    """

    shape: tuple[int, ...]
    dtype: str
    storage: str = ""
    offset: int = 0
    stride: tuple[int, ...] = ()
    kind: str = ""


class Contents(NamedTuple):
    """What was saved, dicts, lists and `Saved` tensors, and the region of each storage."""

    value: Any
    regions: dict[str, Region]


def contents(path: Path) -> Contents:
    """Return what a file of torch.save holds.

    Raises Refused with a reason in words if it is broken or holds anything else than tensors,
    numbers, text, lists and dicts; CheckpointError if it is not a regular file.
    """
    with open_regular(path) as file:
        return contents_of(file)


def contents_of(file: IO[bytes]) -> Contents:
    """Return what an open file of torch.save holds; otherwise as `contents`."""
    try:
        zipped = file.read(4) == b"PK\3\4"
        file.seek(0)
        return _zipped(file) if zipped else _in_sequence(file)
    except (OSError, Refused, CheckpointError):
        raise
    # Nearly anything: ZIP fields that lie, instructions out of place, numbers of no sense.
    except (Exception, RecursionError) as error:
        raise Refused(f"it is damaged ({type(error).__name__})") from None


def _zipped(file: IO[bytes]) -> Contents:
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        for member in members.values():
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                # A small archive that unpacks to a large one is a trap.
                raise Refused(
                    f"{member.filename!r} is compressed; torch stores without compression"
                )
            if member.file_size != member.compress_size or member.file_size > size:
                raise Refused(f"{member.filename!r} is said to be larger than the file")
        roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1 or len(members) < len(archive.infolist()):
            raise Refused(f"holds {len(roots)} of data.pkl, or a member twice; expected one")
        (root,) = roots
        if f"{root}/constants.pkl" in members:
            raise Refused("is a TorchScript program; expected a state dict")
        order = members.get(f"{root}/byteorder")
        if order is not None and _region_bytes(file, _region(file, order, size)) != b"little":
            raise Refused("was saved on a big-endian machine")
        pickle = _region(file, members[f"{root}/data.pkl"], size)
        if pickle.length > LONGEST:
            raise Refused(f"its pickle is over {LONGEST} bytes long")
        file.seek(pickle.start)
        machine = Machine(file, size)
        value = machine.run()
        refuse_cycle(value)
        keys = {key: members.get(f"{root}/data/{key}") for key in machine.storages}
        missing = [key for key, member in keys.items() if member is None]
        if missing:
            raise Refused(f"has no data/{missing[0][:20]}, which its pickle names")
        regions = {key: _region(file, member, size) for key, member in keys.items() if member}
        return Contents(value, regions)


def _region(file: IO[bytes], member: zipfile.ZipInfo, size: int) -> Region:
    """Return where the bytes of a member are, by its local header; they lie within the file."""
    file.seek(member.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\3\4":
        raise Refused(f"{member.filename!r} has no header")
    start = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + member.file_size > size:
        raise Refused(f"{member.filename!r} ends beyond the file")
    return Region(start, member.file_size)


def _region_bytes(file: IO[bytes], region: Region) -> bytes:
    file.seek(region.start)
    return file.read(min(region.length, 16))


def _in_sequence(file: IO[bytes]) -> Contents:
    """Read the format of torch before 1.6: a magic number, two headers, the value, the storages."""
    size = file.seek(0, 2)
    file.seek(0)
    if Machine(file, size).run() != MAGIC:
        raise Refused("is neither a ZIP archive nor a file of an old torch")
    Machine(file, size).run()
    system = Machine(file, size).run()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("was saved on a big-endian machine")
    machine = Machine(file, size)
    value = machine.run()
    refuse_cycle(value)
    keys = Machine(file, size).run()
    if not isinstance(keys, list) or not machine.storages.keys() <= set(map(str, keys)):
        raise Refused("does not list its storages")
    regions = {}
    for key in map(str, keys):
        (numbers,) = struct.unpack("<q", file.read(8))
        start = file.tell()
        length = numbers * width(machine.storages[key])
        if numbers < 0 or start + length > size:
            raise Refused("a storage ends beyond the file")
        regions[key] = Region(start, length)
        file.seek(start + length)
    return Contents(value, regions)


def width(dtype: str) -> int:
    """Return the bytes of a number of this dtype; Refused if they are not known.

    >>> width("torch.bfloat16"), width("torch.float8_e4m3fn"), width("torch.bool")
    (2, 1, 1)
    """
    digits = "".join(filter(str.isdigit, dtype.partition("_")[0].removeprefix("torch.")))
    if dtype == "torch.bool":
        return 1
    size = SIZES.get("16" if dtype == "torch.bfloat16" else digits)
    if dtype.startswith("torch.complex"):
        size = int(digits or 0) // 8
    if not size:
        raise Refused(f"holds numbers of the dtype {dtype[:40]}")
    return size


@dataclass(frozen=True)
class Named:
    """Something that the pickle names: a function, a type, a dtype."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage as a pickle refers to it; offset: of a view of it, in numbers."""

    key: str
    dtype: str
    offset: int = 0


class Opaque:
    """A value that no tensor is made of, such as a device or a set."""


OPAQUE = Opaque()
MARK = Opaque()


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, dtype: str = "") -> Saved:
    numbers = [offset, *shape, *stride]
    whole = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    if not whole or len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
        raise Refused("a tensor has no possible shape")
    offset = storage.offset + offset
    return Saved(tuple(shape), dtype or storage.dtype, storage.key, offset, tuple(stride))


def _rebuilt(*args: Any) -> Saved:
    """The tensor of _rebuild_tensor and _rebuild_tensor_v2."""
    return _tensor(*args[:4])


def _rebuilt_v3(*args: Any) -> Saved:
    storage, offset, shape, stride = args[:4]
    return _tensor(storage, offset, shape, stride, dtype=args[6].name)


def _foreign(kind: str, shape: Callable[..., Any]) -> Callable[..., Saved]:
    """Return a function that notes a tensor of another kind; shape: takes it out of the args."""

    def noted(*args: Any) -> Saved:
        found = shape(*args)
        sizes = found if isinstance(found, tuple | list) else ()
        whole = len(sizes) <= MOST_DIMENSIONS and all(type(n) is int and n >= 0 for n in sizes)
        return Saved(tuple(sizes) if whole else (), kind, kind=kind)

    return noted


def _of_type(function: Any, of_type: Any, args: Any, *_: Any) -> Any:
    """The tensor of _rebuild_from_type_v2: a tensor with attributes, or of a subclass."""
    plain = ("torch.Tensor", "torch.nn.parameter.Parameter")
    if not isinstance(of_type, Named) or of_type.name not in plain:
        return Saved((), "another type", kind="of another type")
    return _called(function, args)


def _mapping(*args: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pairs in args[:1]:
        for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
            _put(result, key, value)
    return result


def _put(mapping: Any, key: Any, value: Any) -> None:
    """Set a key, if it is text or a number: the hash of anything nested can take any time."""
    if type(mapping) is not dict:
        raise Refused("sets an item of something that is not a dict")
    if type(key) in (str, int, bool, float, bytes):
        mapping[key] = value


def refuse_cycle(value: Any) -> None:
    """Raise Refused if a dict contains itself, or if dicts are nested deeper than DEEPEST."""
    done: set[int] = set()

    def walk(mapping: dict[Any, Any], depth: int) -> None:
        if depth > DEEPEST:
            raise Refused("its dicts contain themselves, or are nested too deep")
        for inner in mapping.values():
            if type(inner) is dict and id(inner) not in done:
                walk(inner, depth + 1)
        done.add(id(mapping))

    if type(value) is dict:
        walk(value, 0)


# What a pickle of torch.save may call; everything else is refused.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_sparse_tensor": _foreign(
        "sparse", lambda layout, data: data[2 if len(data) == 3 else -2]
    ),
    "torch._utils._rebuild_qtensor": _foreign("quantised", lambda storage, offset, size, *_: size),
    "torch._utils._rebuild_meta_tensor_no_storage": _foreign("meta", lambda dtype, size, *_: size),
    "torch._utils._rebuild_nested_tensor": _foreign("nested", lambda *_: ()),
    "torch._utils._rebuild_wrapper_subclass": _foreign("wrapped", lambda *_: ()),
    "torch._utils._rebuild_device_tensor_from_numpy": _foreign("on a device", lambda *_: ()),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _foreign("on a device", lambda *_: ()),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda *_: OPAQUE,
    "torch.serialization._get_layout": lambda *_: OPAQUE,
    "_codecs.encode": lambda *_: OPAQUE,
    "builtins.set": lambda *_: OPAQUE,
    "__builtin__.set": lambda *_: OPAQUE,
    "builtins.bytearray": lambda *_: OPAQUE,
    "__builtin__.bytearray": lambda *_: OPAQUE,
    "builtins.complex": lambda *_: OPAQUE,
    "__builtin__.complex": lambda *_: OPAQUE,
}
# Prefixes of the dtypes, layouts and schemes of quantisation that torch has under its own name.
OF_TORCH = ("float", "bfloat", "int", "uint", "bool", "complex", "q", "per_", "strided", "sparse_")


def _named(module: str, name: str) -> Named:
    """Return what a pickle names; Refused if a state dict has no use for it."""
    full = f"{module}.{name}"
    known = full in FUNCTIONS or full == "torch.Tensor"
    known |= module in ("torch", "torch.storage") and name in STORAGES
    known |= module == "torch" and name.startswith(OF_TORCH)
    if not known:
        raise Refused(f"its pickle does more than rebuild tensors ({full[:60]})")
    return Named(full)


def _called(function: Any, args: Any) -> Any:
    if not isinstance(function, Named) or function.name not in FUNCTIONS or type(args) is not tuple:
        raise Refused("its pickle does more than rebuild tensors")
    return FUNCTIONS[function.name](*args)


class Machine:
    """Carries out one pickle of torch.save.

    file: is read up to the end of the pickle.
    size: bytes of the whole file.
    storages: key → dtype, of what the pickle refers to.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size
        self.storages: dict[str, str] = {}
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return the value of the pickle; raises Refused, or nearly anything if it is broken."""
        for name, arg in _instructions(self.file, INSTRUCTIONS + self.size // BYTES_EACH):
            if name == "STOP":
                return self.stack.pop()
            if name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in LITERALS:
                self.stack.append(arg)
            else:
                step = STEPS.get(name)
                if step is None:
                    raise Refused(f"its pickle has the instruction {name}; torch.save has none")
                step(self, arg)
        raise Refused("its pickle has no end")

    def _global(self, arg: str) -> None:
        self.stack.append(_named(*arg.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_named(str(module), str(name)))

    def _call(self, _: Any) -> None:
        args = self.stack.pop()
        self.stack.append(_called(self.stack.pop(), args))

    def _build(self, _: Any) -> None:
        """Forget the state of an object: the metadata of a state dict, attributes of a tensor."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | Saved):
            raise Refused("its pickle does more than rebuild tensors")

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused("appends to something that is not a list")
        self.stack[-1].extend(items)

    def _additems(self, _: Any) -> None:
        self._to_mark()

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], key, value)

    def _setitems(self, _: Any) -> None:
        items = self._to_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self.stack[-1], key, value)

    def _tuple(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def _tuple_of(self, n: int) -> None:
        items = tuple(self.stack[-n:])
        del self.stack[-n:]
        self.stack.append(items)

    def _persistent(self, _: Any) -> None:
        word, kind, key, _location, _numbers, *view = self.stack.pop()
        if word != "storage" or not isinstance(kind, Named):
            raise Refused("its pickle refers to something that is not a storage")
        dtype = STORAGES[kind.name.rpartition(".")[2]]
        first = self.storages.setdefault(str(key), dtype)
        offset = view[0][1] if view and view[0] is not None else 0
        if first != dtype and kind.name.rpartition(".")[2] != "UntypedStorage":
            raise Refused("a storage has two dtypes")
        self.stack.append(Storage(str(key), dtype, offset))

    def _get(self, arg: int) -> None:
        self.stack.append(self.memo[arg])

    def _put(self, arg: int) -> None:
        self.memo[arg] = self.stack[-1]

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]


STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._call,
    "NEWOBJ": Machine._call,
    "BUILD": Machine._build,
    "MARK": Machine._mark,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "ADDITEMS": Machine._additems,
    "SETITEM": Machine._setitem,
    "SETITEMS": Machine._setitems,
    "TUPLE": Machine._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "BINPERSID": Machine._persistent,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._memoize,
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
}
CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "EMPTY_SET": OPAQUE,
}
LITERALS = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES",
)  # fmt: skip


def _instructions(file: IO[bytes], most: int) -> Iterator[tuple[str, Any]]:
    """Yield the instructions of a pickle with their arguments; Refused if there are too many."""
    for i, (opcode, arg, _) in enumerate(pickletools.genops(cast(Any, _Bounded(file)))):
        if i > most:
            raise Refused(f"its pickle has over {most} instructions; expected few for each tensor")
        yield opcode.name, arg


class _Bounded:
    """A file of which no more than LONGEST bytes can be read from where it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, LONGEST

    def read(self, n: int) -> bytes:
        """Read n bytes."""
        return self._counted(self.file.read(min(n, self.left)))

    def readline(self) -> bytes:
        """Read a line."""
        return self._counted(self.file.readline(min(10_000, self.left)))

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        return data
