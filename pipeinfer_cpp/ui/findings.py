"""What the doctor found."""

from __future__ import annotations

from rich.text import Text

from pipeinfer_cpp.health.finding import FAILED, OK, Finding

MARKS = {OK: ("ok     ", "green"), FAILED: ("FAILED ", "bold red")}


def finding_line(finding: Finding) -> Text:
    """Mark, name, text; what to do on a line of its own."""
    word, style = MARKS.get(finding.mark, ("warning", "yellow"))
    line = Text.assemble((word + "  ", style), (f"{finding.name:20}", "bold"), finding.text)
    if finding.advice:
        line.append(f"\n{'':29}{finding.advice}", style)
    return line
