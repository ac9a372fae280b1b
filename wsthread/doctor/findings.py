"""A finding: what is wrong, whose doing it is, and what to change.

Each finding has a name, which stays the same, so that scripts and people can look for it; ``docs/traps.rst`` has a
section on each.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple


class Severity(Enum):
    """How bad it is."""

    #: It does not work, for all or some.
    FAULT = "fault"
    #: It works, and there are circumstances in which it does not.
    WARNING = "warning"
    #: Something to know, or what could not be looked at.
    NOTE = "note"


class Hop(Enum):
    """Whose doing it is, on the way from the client to the application."""

    CLIENT = "client"
    NETWORK = "network"
    PROXY = "proxy"
    SERVER = "WSGI server"
    APPLICATION = "application"
    MACHINE = "machine"


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        name: such as ``upgrade-lost``.
        severity: how bad it is.
        hop: whose doing it is.
        symptom: what was seen, in a sentence.
        remedy: what to change, with the line where there is one.
    """

    name: str
    severity: Severity
    hop: Hop
    symptom: str
    remedy: str

    def as_json(self) -> dict[str, str]:
        """Return it ready for JSON."""
        return {
            "name": self.name, "severity": self.severity.value, "hop": self.hop.value, "symptom": self.symptom,
            "remedy": self.remedy}


def fault(name: str, hop: Hop, symptom: str, remedy: str) -> Finding:
    """Return a finding of something that does not work."""
    return Finding(name, Severity.FAULT, hop, symptom, remedy)


def warning(name: str, hop: Hop, symptom: str, remedy: str) -> Finding:
    """Return a finding of something that is not going to work at times."""
    return Finding(name, Severity.WARNING, hop, symptom, remedy)


def note(name: str, hop: Hop, symptom: str, remedy: str) -> Finding:
    """Return a finding of something to know."""
    return Finding(name, Severity.NOTE, hop, symptom, remedy)


def all_is_well(findings: Iterable[Finding]) -> bool:
    """Tell whether there is nothing but notes."""
    return all(one.severity is Severity.NOTE for one in findings)
