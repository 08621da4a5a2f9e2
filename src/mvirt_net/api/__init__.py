"""Control of a running daemon by other programs: gRPC and JSON over HTTP.

It needs the packages of the extra ``api`` (`EXTRA`); whoever imports a module from here without
them gets an ImportError. HTTP itself is hypercorn's. The modules from the bottom up:
`connections` (sockets, and what a client may cost), `exchange` (one request and its answer), `grpc`
and `http` (calls, and requests, as ASGI applications), the services (`net_service`, `health`,
`reflection`) and resources (`rest`, `openapi`), `server` (all of it).
"""

EXTRA = "mvirt-net[api]"
"""What to install."""
