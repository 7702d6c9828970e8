"""The documents of a simulated Redfish BMC: what GET answers at each path. Plain data made from the state."""

from __future__ import annotations

from collections.abc import Callable

from metal_sim.redfish import measurements
from metal_sim.redfish.state import Document, LogEntry, RedfishState, Update

ROOT = "/redfish/v1"
SESSIONS = f"{ROOT}/SessionService/Sessions"
UPDATE = f"{ROOT}/UpdateService"
TASKS = f"{ROOT}/TaskService/Tasks"
MONITORS = f"{ROOT}/TaskService/TaskMonitors"
STREAM = f"{ROOT}/EventService/SSE"
PAGE = 50
"""Members of the event log in one answer."""

_Make = Callable[[RedfishState], Document]


def system_path(state: RedfishState) -> str:
    """Where the machine is."""
    return f"{ROOT}/Systems/{state.personality.system}"


def chassis_path(state: RedfishState) -> str:
    """Where its case is."""
    return f"{ROOT}/Chassis/{state.personality.chassis}"


def manager_path(state: RedfishState) -> str:
    """Where the BMC itself is."""
    return f"{ROOT}/Managers/{state.personality.manager}"


def log_path(state: RedfishState) -> str:
    """Where the event log is."""
    owner = manager_path(state) if state.personality.log_on_manager else system_path(state)
    return f"{owner}/LogServices/SEL"


def reset_path(state: RedfishState) -> str:
    """Where power orders go."""
    return f"{system_path(state)}/Actions/ComputerSystem.Reset"


def find(state: RedfishState, path: str, skip: int = 0) -> Document | None:
    """The document at a path without a slash at its end, None when there is none."""
    fixed = _tree(state).get(path)
    if fixed is not None:
        document = fixed(state)
    elif path == f"{log_path(state)}/Entries":
        document = _entries(state, path, skip)
    elif path.startswith(f"{SESSIONS}/"):
        identity = path.rpartition("/")[2]
        if identity not in list(state.sessions):
            return None
        document = {"@odata.type": "#Session.v1_3_0.Session", "Id": identity, "Name": "Session", "UserName": ""}
    else:
        found = measurements.find(state, chassis_path(state), path)
        if found is None:
            return None
        document = found
    return {"@odata.id": path, **document}


def task(update: Update) -> Document:
    """The task of an update."""
    finished = update.state != "Running"
    return {
        "@odata.id": f"{TASKS}/{update.id}",
        "@odata.type": "#Task.v1_4_3.Task",
        "Id": update.id,
        "Name": "Update",
        "TaskState": update.state,
        "TaskStatus": "Critical" if update.state == "Exception" else "OK",
        "PercentComplete": 100 if finished else max(0, 100 - 10 * update.left),
        "TaskMonitor": f"{MONITORS}/{update.id}",
        "Messages": [],
    }


def collection(kind: str, members: list[str]) -> Document:
    """A collection by the paths of its members."""
    return {
        "@odata.type": f"#{kind}Collection.{kind}Collection",
        "Name": f"{kind}s",
        "Members": [link(member) for member in members],
        "Members@odata.count": len(members),
    }


def link(path: str) -> dict[str, str]:
    """A reference."""
    return {"@odata.id": path}


def _tree(state: RedfishState) -> dict[str, _Make]:
    make, system, manager, chassis = (
        state.personality,
        system_path(state),
        manager_path(state),
        chassis_path(state),
    )
    tree: dict[str, _Make] = {
        ROOT: _root,
        f"{ROOT}/Systems": lambda _: collection("ComputerSystem", [system]),
        system: _system,
        f"{ROOT}/Managers": lambda _: collection("Manager", [manager]),
        manager: _manager,
        f"{ROOT}/Chassis": lambda _: collection("Chassis", [chassis]),
        chassis: _chassis,
        log_path(state).rpartition("/")[0]: lambda _: collection("LogService", [log_path(state)]),
        log_path(state): _log,
    }
    if make.sessions:
        tree[f"{ROOT}/SessionService"] = _session_service
        tree[SESSIONS] = lambda _: collection("Session", [f"{SESSIONS}/{each}" for each in state.sessions])
    if make.action_info and make.reset_types is not None:
        tree[f"{system}/ResetActionInfo"] = _reset_action_info
    if make.events:
        tree[f"{ROOT}/EventService"] = _event_service
    if make.updates:
        tree[UPDATE] = _update_service
        inventory = f"{UPDATE}/FirmwareInventory"
        tree[inventory] = lambda _: collection("SoftwareInventory", [f"{inventory}/{each}" for each in state.firmware])
        for name in state.firmware:
            tree[f"{inventory}/{name}"] = lambda _, name=name: _software(state, name)  # type: ignore[misc]
    return tree


def _root(state: RedfishState) -> Document:
    make = state.personality
    document: Document = {
        "@odata.type": "#ServiceRoot.v1_9_0.ServiceRoot",
        "Id": "RootService",
        "Name": "Root Service",
        "RedfishVersion": "1.11.0",
        "UUID": state.uuid,
        "Systems": link(f"{ROOT}/Systems"),
        "Chassis": link(f"{ROOT}/Chassis"),
        "Managers": link(f"{ROOT}/Managers"),
        "Links": {},
    }
    if make.sessions:
        document["SessionService"] = link(f"{ROOT}/SessionService")
        document["Links"] = {"Sessions": link(SESSIONS)}
    if make.events:
        document["EventService"] = link(f"{ROOT}/EventService")
    if make.updates:
        document["UpdateService"] = link(UPDATE)
    return document


def _session_service(state: RedfishState) -> Document:
    return {
        "@odata.type": "#SessionService.v1_1_8.SessionService",
        "Id": "SessionService",
        "Name": "Session Service",
        "ServiceEnabled": True,
        "SessionTimeout": int(state.sessions.idle_seconds),
        "Sessions": link(SESSIONS),
    }


def _system(state: RedfishState) -> Document:
    make, path = state.personality, system_path(state)
    reset: Document = {"target": reset_path(state)}
    if make.reset_types is not None:
        if make.action_info:
            reset["@Redfish.ActionInfo"] = f"{path}/ResetActionInfo"
        else:
            reset["ResetType@Redfish.AllowableValues"] = list(make.reset_types)
    document: Document = {
        "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem",
        "Id": make.system,
        "Name": "System",
        "SystemType": "Physical",
        "Manufacturer": make.manufacturer,
        "Model": make.model,
        "PartNumber": "PN-200",
        "SerialNumber": state.serial,
        "UUID": state.uuid,
        "BiosVersion": state.firmware["BIOS"],
        "PowerState": state.power,
        "Status": {"State": "Enabled", "Health": "OK"},
        "Boot": state.boot(),
        "Links": {
            "Chassis": [link(chassis_path(state))],
            "ManagedBy": [link(manager_path(state))],
        },
        "Actions": {"#ComputerSystem.Reset": reset},
    }
    if not make.light_on_chassis:
        document.update(_light(state))
    if not make.log_on_manager:
        document["LogServices"] = link(f"{path}/LogServices")
    return document


def _light(state: RedfishState) -> Document:
    lit = state.chassis.identify_state() != 0
    if state.personality.location_indicator:
        return {"LocationIndicatorActive": lit, "IndicatorLED": "Lit" if lit else "Off"}
    return {"IndicatorLED": "Lit" if lit else "Off"}


def _reset_action_info(state: RedfishState) -> Document:
    types = list(state.personality.reset_types or ())
    return {
        "@odata.type": "#ActionInfo.v1_1_2.ActionInfo",
        "Id": "ResetActionInfo",
        "Name": "Reset Action Info",
        "Parameters": [{"Name": "ResetType", "Required": True, "DataType": "String", "AllowableValues": types}],
    }


def _manager(state: RedfishState) -> Document:
    document: Document = {
        "@odata.type": "#Manager.v1_11_0.Manager",
        "Id": state.personality.manager,
        "Name": "Manager",
        "ManagerType": "BMC",
        "Model": "BMC 9",
        "FirmwareVersion": state.firmware["BMC"],
        "Status": {"State": "Enabled", "Health": "OK"},
        "Links": {"ManagerForServers": [link(system_path(state))]},
    }
    if state.personality.log_on_manager:
        document["LogServices"] = link(f"{manager_path(state)}/LogServices")
    return document


def _chassis(state: RedfishState) -> Document:
    path = chassis_path(state)
    document: Document = {
        "@odata.type": "#Chassis.v1_15_0.Chassis",
        "Id": state.personality.chassis,
        "Name": "Chassis",
        "ChassisType": "RackMount",
        "Manufacturer": state.personality.manufacturer,
        "SerialNumber": f"C{state.serial}",
        "PartNumber": "CH-1",
        "Status": {"State": "Enabled", "Health": "OK"},
        "Links": {"ComputerSystems": [link(system_path(state))], "ManagedBy": [link(manager_path(state))]},
    }
    for name in measurements.SUBSYSTEMS if state.personality.newer else measurements.OLDER:
        document[name] = link(f"{path}/{name}")
    if state.personality.light_on_chassis:
        document.update(_light(state))
    return document


def _log(state: RedfishState) -> Document:
    path = log_path(state)
    return {
        "@odata.type": "#LogService.v1_1_0.LogService",
        "Id": "SEL",
        "Name": "System Event Log",
        "LogEntryType": "SEL",
        "MaxNumberOfRecords": 1000,
        "Entries": link(f"{path}/Entries"),
        "Actions": {"#LogService.ClearLog": {"target": f"{path}/Actions/LogService.ClearLog"}},
    }


def _entries(state: RedfishState, path: str, skip: int) -> Document:
    page = state.log[skip : skip + PAGE]
    document: Document = {
        "@odata.type": "#LogEntryCollection.LogEntryCollection",
        "Name": "Log Entries",
        "Members": [_entry(path, each) for each in page],
        "Members@odata.count": len(state.log),
    }
    if skip + PAGE < len(state.log):
        document["Members@odata.nextLink"] = f"{path}?$skip={skip + PAGE}"
    return document


def _entry(path: str, entry: LogEntry) -> Document:
    return {
        "@odata.id": f"{path}/{entry.id}",
        "@odata.type": "#LogEntry.v1_9_0.LogEntry",
        "Id": str(entry.id),
        "Name": f"Log Entry {entry.id}",
        "EntryType": "SEL",
        "Created": entry.created.isoformat(timespec="seconds"),
        "Severity": entry.severity,
        "MessageId": entry.message_id,
        "Message": entry.message,
    }


def _event_service(_state: RedfishState) -> Document:
    return {
        "@odata.type": "#EventService.v1_7_0.EventService",
        "Id": "EventService",
        "Name": "Event Service",
        "ServiceEnabled": True,
        "ServerSentEventUri": STREAM,
    }


def _update_service(_state: RedfishState) -> Document:
    return {
        "@odata.type": "#UpdateService.v1_8_0.UpdateService",
        "Id": "UpdateService",
        "Name": "Update Service",
        "ServiceEnabled": True,
        "FirmwareInventory": link(f"{UPDATE}/FirmwareInventory"),
        "Actions": {
            "#UpdateService.SimpleUpdate": {
                "target": f"{UPDATE}/Actions/UpdateService.SimpleUpdate",
                "TransferProtocol@Redfish.AllowableValues": ["HTTP", "HTTPS"],
            }
        },
    }


def _software(state: RedfishState, name: str) -> Document:
    return {
        "@odata.type": "#SoftwareInventory.v1_4_0.SoftwareInventory",
        "Id": name,
        "Name": name,
        "Version": state.firmware[name],
        "Updateable": True,
        "Status": {"State": "Enabled", "Health": "OK"},
    }
