"""What requests change on a simulated Redfish BMC: power, boot override, light, log, firmware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from metal_sim.bmc.chassis import ChassisControl
from metal_sim.redfish import documents
from metal_sim.redfish.faults import RedfishFault
from metal_sim.redfish.state import Document, RedfishState, Update

_CONTROLS = {
    "On": ChassisControl.ON,
    "ForceOn": ChassisControl.ON,
    "ForceOff": ChassisControl.OFF,
    "ForceRestart": ChassisControl.RESET,
    "GracefulRestart": ChassisControl.RESET,
    "PowerCycle": ChassisControl.CYCLE,
    "GracefulShutdown": ChassisControl.SOFT_OFF,
    "Nmi": ChassisControl.NMI,
}
_LOOKS_UNTIL_DONE = 8


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int
    document: Document | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def error(status: int, message_id: str, message: str) -> Answer:
    """A failure as the standard writes it."""
    name = f"Base.1.8.{message_id}"
    extended = {"@odata.type": "#Message.v1_1_1.Message", "MessageId": name, "Message": message, "Severity": "Critical"}
    return Answer(status, {"error": {"code": name, "message": message, "@Message.ExtendedInfo": [extended]}})


NOT_FOUND = error(404, "ResourceMissingAtURI", "There is nothing.")
NOT_ALLOWED = error(405, "ActionNotSupported", "The method is not supported here.")


def done(state: RedfishState, path: str) -> Answer:
    """What a make answers when something was carried out."""
    status = state.personality.done_status
    if status == 200:
        changed = documents.find(state, path)
        return Answer(200, changed or error(200, "Success", "Done.").document)
    return Answer(status)


def patch(state: RedfishState, path: str, body: Document) -> Answer:
    """Carry out a PATCH."""
    light = documents.chassis_path(state) if state.personality.light_on_chassis else documents.system_path(state)
    if path not in (documents.system_path(state), light):
        return NOT_ALLOWED if documents.find(state, path) is not None else NOT_FOUND
    known = {"Boot"} if path == documents.system_path(state) else set()
    if path == light:
        known |= {"IndicatorLED", "LocationIndicatorActive"} & (documents.find(state, path) or {}).keys()
    for name in body.keys() - known:
        return error(400, "PropertyUnknown", f"The property {name} is unknown.")
    if state.faults.has(RedfishFault.DOES_NOTHING):
        return done(state, path)
    boot = body.get("Boot")
    if boot is not None:
        refused = state.set_boot(boot) if isinstance(boot, dict) else "Boot"
        if refused:
            return error(400, "PropertyValueNotInList", f"The value of {refused} is not in the list.")
    if "LocationIndicatorActive" in body:
        state.chassis.identify(seconds=0, forced=body["LocationIndicatorActive"] is True)
    elif "IndicatorLED" in body:
        state.chassis.identify(seconds=0, forced=body["IndicatorLED"] != "Off")
    return done(state, path)


def post(state: RedfishState, path: str, body: Document) -> Answer:
    """Carry out an action."""
    if path == documents.reset_path(state):
        return _reset(state, body)
    if path == f"{documents.log_path(state)}/Actions/LogService.ClearLog":
        state.log.clear()
        return done(state, path)
    if path == f"{documents.UPDATE}/Actions/UpdateService.SimpleUpdate" and state.personality.updates:
        return _update(state, body)
    return NOT_ALLOWED if documents.find(state, path) is not None else NOT_FOUND


def look_at_task(state: RedfishState, path: str) -> tuple[Answer, bool]:
    """A task or its monitor, which goes on by being looked at; and whether the BMC restarts after this answer."""
    update = state.updates.get(path.rpartition("/")[2])
    if update is None:
        return NOT_FOUND, False
    restarts = False
    if update.state == "Running":
        update.left -= 1
        if update.left <= 0:
            update.state = "Completed"
            state.firmware[update.component] = update.version
            restarts = update.component == "BMC"
    status = 202 if update.state == "Running" and path.startswith(f"{documents.MONITORS}/") else 200
    return Answer(status, documents.task(update)), restarts


def _reset(state: RedfishState, body: Document) -> Answer:
    kind = body.get("ResetType")
    make, chassis = state.personality, state.chassis
    if kind not in (make.reset_types or _CONTROLS):
        return error(400, "ActionParameterNotSupported", f"The parameter value {kind} is not supported.")
    if state.faults.has(RedfishFault.DOES_NOTHING):
        return done(state, documents.reset_path(state))
    if kind == "PushPowerButton":
        control = ChassisControl.SOFT_OFF if chassis.powered else ChassisControl.ON
    else:
        control = _CONTROLS[str(kind)]
    if (control is ChassisControl.ON and chassis.powered) or not chassis.control(control):
        return error(409, "ResourceInUse", "Not in the present state.")
    state.record("Contoso.1.0.PowerChanged", f"Power order {kind}")
    return done(state, documents.reset_path(state))


def _update(state: RedfishState, body: Document) -> Answer:
    image = body.get("ImageURI")
    if not isinstance(image, str) or not image:
        return error(400, "ActionParameterMissing", "The parameter ImageURI is missing.")
    if any(each.state == "Running" for each in state.updates.values()):
        return error(503, "ServiceTemporarilyUnavailable", "An update is running.")
    # The file's name says what it is for and which version it is: …/bmc-1.21.bin
    component, _, version = image.rpartition("/")[2].removesuffix(".bin").partition("-")
    number = str(len(state.updates) + 1)
    update = Update(number, image, component.upper(), version, _LOOKS_UNTIL_DONE)
    if update.component not in state.firmware:
        update.state = "Exception"
    state.updates[number] = update
    return Answer(202, documents.task(update), {"Location": f"{documents.MONITORS}/{number}"})
