from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROXY: _ClassVar[Role]
    CACHE: _ClassVar[Role]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLACE: _ClassVar[Mode]
    APPEND: _ClassVar[Mode]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMMITTED: _ClassVar[Outcome]
    ABORTED: _ClassVar[Outcome]
    UNKNOWN: _ClassVar[Outcome]
PROXY: Role
CACHE: Role
REPLACE: Mode
APPEND: Mode
COMMITTED: Outcome
ABORTED: Outcome
UNKNOWN: Outcome

class Hello(_message.Message):
    __slots__ = ("version", "role", "instance", "name", "features", "software", "session", "window")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    version: int
    role: Role
    instance: bytes
    name: str
    features: int
    software: str
    session: bytes
    window: int
    def __init__(self, version: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., instance: _Optional[bytes] = ..., name: _Optional[str] = ..., features: _Optional[int] = ..., software: _Optional[str] = ..., session: _Optional[bytes] = ..., window: _Optional[int] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("known", "frames", "partial")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    known: bool
    frames: int
    partial: int
    def __init__(self, known: _Optional[bool] = ..., frames: _Optional[int] = ..., partial: _Optional[int] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Source(_message.Message):
    __slots__ = ("host", "pid", "command", "boot_id")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    host: str
    pid: int
    command: str
    boot_id: str
    def __init__(self, host: _Optional[str] = ..., pid: _Optional[int] = ..., command: _Optional[str] = ..., boot_id: _Optional[str] = ...) -> None: ...

class Namespace(_message.Message):
    __slots__ = ("migration", "name", "copy", "source", "digests")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    name: str
    copy: bool
    source: Source
    digests: bool
    def __init__(self, migration: _Optional[bytes] = ..., name: _Optional[str] = ..., copy: _Optional[bool] = ..., source: _Optional[_Union[Source, _Mapping]] = ..., digests: _Optional[bool] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("migration", "index", "label")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    index: int
    label: str
    def __init__(self, migration: _Optional[bytes] = ..., index: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("migration", "image", "snapshot", "name", "mode", "size")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    image: int
    snapshot: int
    name: str
    mode: Mode
    size: int
    def __init__(self, migration: _Optional[bytes] = ..., image: _Optional[int] = ..., snapshot: _Optional[int] = ..., name: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., size: _Optional[int] = ...) -> None: ...

class Extent(_message.Message):
    __slots__ = ("migration", "image", "offset", "runs")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    image: int
    offset: int
    runs: bytes
    def __init__(self, migration: _Optional[bytes] = ..., image: _Optional[int] = ..., offset: _Optional[int] = ..., runs: _Optional[bytes] = ...) -> None: ...

class ImageEnd(_message.Message):
    __slots__ = ("migration", "image", "size", "digest")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    image: int
    size: int
    digest: bytes
    def __init__(self, migration: _Optional[bytes] = ..., image: _Optional[int] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class ImageSummary(_message.Message):
    __slots__ = ("snapshot", "name", "size", "digest")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    snapshot: int
    name: str
    size: int
    digest: bytes
    def __init__(self, snapshot: _Optional[int] = ..., name: _Optional[str] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class NamespaceEnd(_message.Message):
    __slots__ = ("migration", "images", "last", "source", "labels")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    images: _containers.RepeatedCompositeFieldContainer[ImageSummary]
    last: bool
    source: Source
    labels: bytes
    def __init__(self, migration: _Optional[bytes] = ..., images: _Optional[_Iterable[_Union[ImageSummary, _Mapping]]] = ..., last: _Optional[bool] = ..., source: _Optional[_Union[Source, _Mapping]] = ..., labels: _Optional[bytes] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("migration", "name", "bytes")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    name: str
    bytes: int
    def __init__(self, migration: _Optional[bytes] = ..., name: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    def __init__(self, migration: _Optional[bytes] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("migration", "reason")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    reason: str
    def __init__(self, migration: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class Decided(_message.Message):
    __slots__ = ("migration", "outcome")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    outcome: Outcome
    def __init__(self, migration: _Optional[bytes] = ..., outcome: _Optional[_Union[Outcome, str]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: int
    def __init__(self, frames: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("migration", "bytes")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    bytes: int
    def __init__(self, migration: _Optional[bytes] = ..., bytes: _Optional[int] = ...) -> None: ...

class Discard(_message.Message):
    __slots__ = ("migration", "image", "offset", "length")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    image: int
    offset: int
    length: int
    def __init__(self, migration: _Optional[bytes] = ..., image: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class Restored(_message.Message):
    __slots__ = ("migration",)
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    migration: bytes
    def __init__(self, migration: _Optional[bytes] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("request", "migration", "image", "offset", "length")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    request: int
    migration: bytes
    image: int
    offset: int
    length: int
    def __init__(self, request: _Optional[int] = ..., migration: _Optional[bytes] = ..., image: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class Fetched(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: int
    def __init__(self, request: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("reason", "migration")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    reason: str
    migration: bytes
    def __init__(self, reason: _Optional[str] = ..., migration: _Optional[bytes] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("payload", "hello", "namespace", "snapshot", "image", "extent", "image_end", "namespace_end", "held", "commit", "abort", "decided", "ack", "ping", "pong", "fetch", "fetched", "error", "bye", "resume", "gap", "credit", "discard", "restored")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_END_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_END_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    payload: int
    hello: Hello
    namespace: Namespace
    snapshot: Snapshot
    image: Image
    extent: Extent
    image_end: ImageEnd
    namespace_end: NamespaceEnd
    held: Held
    commit: Commit
    abort: Abort
    decided: Decided
    ack: Ack
    ping: Ping
    pong: Pong
    fetch: Fetch
    fetched: Fetched
    error: Error
    bye: Bye
    resume: Resume
    gap: Gap
    credit: Credit
    discard: Discard
    restored: Restored
    def __init__(self, payload: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., namespace: _Optional[_Union[Namespace, _Mapping]] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., extent: _Optional[_Union[Extent, _Mapping]] = ..., image_end: _Optional[_Union[ImageEnd, _Mapping]] = ..., namespace_end: _Optional[_Union[NamespaceEnd, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., decided: _Optional[_Union[Decided, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ..., fetched: _Optional[_Union[Fetched, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., discard: _Optional[_Union[Discard, _Mapping]] = ..., restored: _Optional[_Union[Restored, _Mapping]] = ...) -> None: ...
