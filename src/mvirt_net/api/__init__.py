"""Control of a running daemon by other programs: gRPC and JSON over HTTP.

It needs the packages of the extra ``api`` (`EXTRA`); whoever imports a module from here without
them gets an ImportError. The modules from the bottom up: `transport` (sockets, and what a client
may cost), `http2` and `http1` (one client each), `grpc` (calls), the services (`net_service`,
`health`, `reflection`) and resources (`rest`, `openapi`), `server` (all of it).
"""

EXTRA = "mvirt-net[api]"
"""What to install."""
