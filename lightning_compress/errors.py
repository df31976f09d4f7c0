"""The one error type for what a user can put right."""


class InputError(ValueError):
    """Something the user gave is wrong; the message names the option or file and the remedy.

    The command line prints it without a traceback.
    """
