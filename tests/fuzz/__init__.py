"""Fuzzing of all that takes octets from a peer: messages in both encodings, records, streams.

    python -m tests.fuzz [--messages N] [--records N] [--seed S] [--jobs J] [--json]

Valid messages, records and streams are damaged, or changed as a liar would, and given to the codecs
and to what reads them. Each must come to an end in time and in bounded memory: decoded, and then
encoded to the same octets where a codec promises that, or refused with an error that says what is
wrong and where. A failure is printed with its octets, and made again by

    python -m tests.fuzz --seed S --only KIND:INDEX
"""
