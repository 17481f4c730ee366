"""The program that keystrokes are typed to, for whoever is measured."""

READY = b"ready\r\n"
ECHO = "stty -echo -icanon min 1; echo ready; exec cat"
"""For a shell: a program, not the kernel, sends back each byte, after it has said that it is there."""
ECHO_LINE = ECHO.encode() + b"\n"
TYPING_SECONDS = 0.005
"""Between two keystrokes: a fast typist, so that each finds all caches and the link as others left them."""
