"""Addresses in what is shown, logged and recorded: without the password that may stand in them."""

import re


def without_password(text: str) -> str:
    """An address, or any text with addresses in it, without what stands before the ``@`` of each."""
    return re.sub(r"//[^/@\s]*@", "//", text)
