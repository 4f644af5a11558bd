"""What long work needs, whatever it does.

- ``files`` that are written whole or not at all; ``settings`` that a result was made from
- ``stages``: predictions that are resumed; ``jobs``: what a sweep's job was to do and how it ended
- ``workers`` of other processes, and ``faults``: errors in words
- ``progress``: how far the work is; ``memory``: what it takes
"""
