"""`pipeinfer doctor`: what is installed, and whether it works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeinfer_cpp.cli.streams import write_json
from pipeinfer_cpp.health.finding import FAILED, OK, Check, Finding, run

if TYPE_CHECKING:
    from rich.text import Text

MARKS = {OK: ("ok     ", "green"), FAILED: ("FAILED ", "bold red")}


def finding_line(finding: Finding) -> Text:
    """Mark, name, text; what to do on a line of its own."""
    from rich.text import Text

    word, style = MARKS.get(finding.mark, ("warning", "yellow"))
    line = Text.assemble((word + "  ", style), (f"{finding.name:20}", "bold"), finding.text)
    if finding.advice:
        line.append(f"\n{'':29}{finding.advice}", style)
    return line


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the self-check, which takes some seconds.")] = False,
) -> None:
    """Look at what is installed, this CPU, threads, sockets and folders, and try the demo pair.

    Ends with 1 when something failed.
    """
    from pipeinfer_cpp.health import installed, selfcheck, surroundings
    from pipeinfer_cpp.ui.consoles import out

    checks: list[tuple[str, Check]] = [
        ("packages", installed.packages),
        ("llama.cpp", installed.llama),
        ("machine", installed.machine),
        ("sockets", surroundings.sockets),
        ("cache", surroundings.cache),
        ("models", surroundings.models),
    ]
    if not quick:
        checks.append(("self-check", selfcheck.self_check))
    findings: list[Finding] = []
    for name, check in checks:
        for finding in run(name, check):
            findings.append(finding)
            if not as_json:
                out().print(finding_line(finding))
    failed = [finding for finding in findings if finding.mark == FAILED]
    if as_json:
        report = {"ok": not failed, "findings": findings}
        write_json(report)
    if failed:
        raise typer.Exit(1)
