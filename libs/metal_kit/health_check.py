"""Asks a gRPC server whether it serves (grpc.health.v1), for container health checks: exit code 0 when it does.

    python -m metal_kit.health_check HOST:PORT SERVICE

SERVICE is the name of the plane's service, whose certificate must carry `<service>.metalplane`. The certificate of the
one who asks comes from the same settings as the server's (METALPLANE_TLS_CA, _CERT, _KEY). It imports no more of the
kit than that takes, because it runs every few seconds in every container.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

SERVING, NOT_SERVING, CANNOT_ASK = 0, 1, 2
_METHOD = "/grpc.health.v1.Health/Check"
_SECONDS = 3.0


def check(endpoint: str, service: str, *, ca: Path, cert: Path, key: Path, seconds: float = _SECONDS) -> str:
    """Empty when the server at `endpoint` serves, otherwise what is wrong, in one line. OSError for a missing file."""
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), cert.read_bytes())
    options = (("grpc.ssl_target_name_override", f"{service}.metalplane"), ("grpc.enable_http_proxy", 0))
    with grpc.secure_channel(endpoint, credentials, options=options) as channel:
        ask = channel.unary_unary(
            _METHOD,
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            status = ask(HealthCheckRequest(), timeout=seconds).status
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return "" if status == HealthCheckResponse.SERVING else HealthCheckResponse.ServingStatus.Name(status)


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m metal_kit.health_check", description=__doc__)
    parser.add_argument("endpoint", metavar="HOST:PORT")
    parser.add_argument("service", metavar="SERVICE")
    options = parser.parse_args(arguments)
    names = {"ca": "METALPLANE_TLS_CA", "cert": "METALPLANE_TLS_CERT", "key": "METALPLANE_TLS_KEY"}
    missing = [name for name in names.values() if not environment.get(name)]
    if missing:
        return _say(f"{', '.join(missing)} not set", CANNOT_ASK)
    paths = {part: Path(environment[name]) for part, name in names.items()}
    try:
        fault = check(options.endpoint, options.service, ca=paths["ca"], cert=paths["cert"], key=paths["key"])
    except OSError as error:
        return _say(f"{error.filename}: {error.strerror}", CANNOT_ASK)
    return _say(f"{options.service} at {options.endpoint}: {fault}", NOT_SERVING) if fault else SERVING


def _say(line: str, code: int) -> int:
    sys.stderr.write(f"{line}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
