"""Strategy of arbitrary JSON values, shared by property-based tests, and the promise about messages."""

from hypothesis import strategies as st

from saqsam.utils.errors import MAX_MESSAGE_LENGTH

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def is_short_line(message: str, source: str) -> bool:
    """Return whether an error message is one short line that starts with the name of the file."""
    return message.startswith(source) and "\n" not in message and len(message) <= MAX_MESSAGE_LENGTH
