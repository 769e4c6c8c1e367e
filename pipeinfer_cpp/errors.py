"""Errors that a person reads: one sentence that says what is wrong and what to do."""


class PipeInferError(Exception):
    """A failure at run time (a stage died, a timeout). The command ends with `exit_code`."""

    exit_code = 1


class UserError(PipeInferError):
    """A mistake in what the user asked for or supplied. The command ends with code 2."""

    exit_code = 2


class FormLost(PipeInferError):
    """A text cannot be kept to the form that was asked for any further. The pipeline goes on."""
