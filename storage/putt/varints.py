"""Numbers of any size as bytes: LEB128, seven bits a byte, the lowest first."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """A number of at least 0, LEB128."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next one begins. Raises ValueError where it does not end."""
    number = 0
    for place, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError(f"a number at byte {at} without an end")
