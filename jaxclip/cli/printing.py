"""What every command prints with."""


def printable(text: str) -> str:
    """The text on one line and in any encoding's reach: line breaks, control characters and bytes that are no text, as
    file names may hold them, become backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
