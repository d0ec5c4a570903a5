"""Remembers Ctrl-C, since a library may swallow it while it computes, or turn it into another error."""

_pressed = list[bool]()


def press(*_: object) -> None:
    """The handler of SIGINT. Raises KeyboardInterrupt, as Python's own does."""
    _pressed.append(True)
    raise KeyboardInterrupt


def pressed() -> bool:
    return bool(_pressed)


def forget() -> None:
    _pressed.clear()


def check() -> None:
    """Raises KeyboardInterrupt where Ctrl-C was pressed: asked before what was made takes its place."""
    if _pressed:
        raise KeyboardInterrupt
