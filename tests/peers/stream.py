"""A stream of which every byte tells where it belongs, for both ends of a connection.

Every MiB starts with its number; the rest is a fixed random block. SHA-256 over all of it is what both ends compare.
"""

import hashlib
import random

MIB = 1 << 20
_block = random.Random(7).randbytes(MIB)


def blocks(total):
    """The stream of `total` bytes, in pieces."""
    for n in range((total + MIB - 1) // MIB):
        piece = n.to_bytes(8, "big") + _block[8:]
        yield piece[: min(MIB, total - n * MIB)]


def digest(total):
    h = hashlib.sha256()
    for b in blocks(total):
        h.update(b)
    return h.hexdigest()


def write_file(path, total):
    """Writes the stream to a file; gives its digest."""
    h = hashlib.sha256()
    with open(path, "wb") as f:
        for b in blocks(total):
            f.write(b)
            h.update(b)
    return h.hexdigest()


if __name__ == "__main__":
    import sys

    print(write_file(sys.argv[1], int(sys.argv[2])))
