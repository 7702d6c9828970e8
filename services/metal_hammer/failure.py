"""Steps of an installer's run, and how a step fails.

A failure always carries the step and a code from a fixed list, so that the control plane can act on it and count it;
the detail is for people and must never hold a secret.
"""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """Where a run is. The values travel in events, reports and logs."""

    PREPARE = "prepare"
    ENROL = "enrol"
    INSPECT = "inspect"
    REGISTER = "register"
    WIPE = "wipe"
    WAIT = "wait"
    PLAN = "plan"
    PARTITION = "partition"
    FETCH = "fetch"
    UNPACK = "unpack"
    CONFIGURE = "configure"
    BOOTLOADER = "bootloader"
    REPORT = "report"
    KEXEC = "kexec"


class Code(StrEnum):
    """Why a step failed."""

    GRANT_REFUSED = "GRANT_REFUSED"
    INSPECT_FAILED = "INSPECT_FAILED"
    ENROL_FAILED = "ENROL_FAILED"
    WIPE_FAILED = "WIPE_FAILED"
    LAYOUT_INVALID = "LAYOUT_INVALID"
    LAYOUT_DOES_NOT_FIT = "LAYOUT_DOES_NOT_FIT"
    COMMAND_FAILED = "COMMAND_FAILED"
    COMMAND_TIMEOUT = "COMMAND_TIMEOUT"
    IMAGE_UNREACHABLE = "IMAGE_UNREACHABLE"
    IMAGE_TRUNCATED = "IMAGE_TRUNCATED"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    IMAGE_HASH_MISMATCH = "IMAGE_HASH_MISMATCH"
    IMAGE_FORMAT_UNKNOWN = "IMAGE_FORMAT_UNKNOWN"
    IMAGE_UNSAFE = "IMAGE_UNSAFE"
    IMAGE_CORRUPT = "IMAGE_CORRUPT"
    TARGET_IO = "TARGET_IO"
    NO_KERNEL = "NO_KERNEL"
    PLANE_REFUSED = "PLANE_REFUSED"
    PLANE_UNREACHABLE = "PLANE_UNREACHABLE"
    KEXEC_FAILED = "KEXEC_FAILED"
    UNEXPECTED = "UNEXPECTED"


class StepFailed(Exception):
    """A step of the run ended without what it was to do. `detail` is for people, at most 1024 characters."""

    def __init__(self, step: Step, code: Code, detail: str) -> None:
        super().__init__(f"{step}: {code}: {detail}")
        self.step = step
        self.code = code
        self.detail = detail[:1024]
