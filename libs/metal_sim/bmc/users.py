"""The user table of a simulated BMC (IPMI 2.0 §22.26-22.30): names, passwords, privileges.

Keeps passwords in clear, as a BMC must: RAKP needs the secret itself. User 1 is the anonymous one and stays disabled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_USERS = 10
_MAX_NAME = 16
_MAX_PASSWORD = 20


@dataclass
class User:
    """One user. Privilege 2 user, 3 operator, 4 administrator, 15 no access; `messaging`: may log in over the LAN."""

    name: bytes = b""
    password: bytes = field(default=b"", repr=False)
    privilege: int = 15
    enabled: bool = False
    messaging: bool = True


class UserTable:
    """Users by id, 1 to 10."""

    def __init__(self, name: str, password: str) -> None:
        """Begin with one administrator as user 2. Raises ValueError for a name or password that IPMI cannot hold."""
        raw_name, raw_password = name.encode(), password.encode()
        if not 0 < len(raw_name) <= _MAX_NAME:
            raise ValueError(f"a BMC user name has 1 to {_MAX_NAME} bytes")
        if len(raw_password) > _MAX_PASSWORD:
            raise ValueError(f"a BMC password has at most {_MAX_PASSWORD} bytes")
        # The others are made when somebody looks: thousands of BMCs share a process.
        self._users = {2: User(raw_name, raw_password, 4, True)}

    def by_id(self, number: int) -> User | None:
        """The user with that id, None outside 1 to 10."""
        return self._users.setdefault(number, User()) if 1 <= number <= MAX_USERS else None

    def by_name(self, name: bytes) -> User | None:
        """The enabled user with that name."""
        able = (user for user in self._users.values() if user.enabled and user.messaging)
        return next((user for user in able if user.name == name and name), None)

    def enabled_count(self) -> int:
        """How many users may log in."""
        return sum(user.enabled for user in self._users.values())

    def set_password(self, name: str, password: str) -> None:
        """Change a password from outside of IPMI, as somebody at the BMC's web page would. KeyError: no such user."""
        user = self.by_name(name.encode())
        if user is None:
            raise KeyError(name)
        user.password = password.encode()
