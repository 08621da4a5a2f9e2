"""The extension as CFFI makes it from mvirt.h (API mode)."""

from typing import Any

class _FFI:
    NULL: Any
    errno: int
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def gc(self, cdata: Any, destructor: Any) -> Any: ...
    def typeof(self, cdecl: str) -> Any: ...

ffi: _FFI
lib: Any
