"""docs/server.md does what it says: its server is started, on a free port, and its code runs in order against it."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from test_cli_serve import running

from numainfer.server import fields

DOC = Path(__file__).resolve().parent.parent / "docs" / "server.md"
BLOCKS = re.findall(r"^```(python|bash|text)\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL)


def test_the_code_runs(smollm2):
    (command,) = [shlex.split(code) for kind, code in BLOCKS if kind == "bash"]
    assert command[:2] == ["numainfer", "serve"] and command[-2:] == ["--port", "8000"]
    names, printed = {}, ""
    with running(*command[2:-2]) as server:
        for kind, code in BLOCKS:
            if kind == "python":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(code.replace("http://127.0.0.1:8000/v1", server.url), str(DOC), "exec"), names)
                printed = out.getvalue()
            elif kind == "text":
                assert printed == code
    own = smollm2.chat(names["messages"], max_tokens=40, temperature=0)
    assert names["answer"].choices[0].message.content == own.text and isinstance(names["sky"].clouds, bool)


@pytest.mark.parametrize("known", [fields.HARMLESS, fields.CHAT, fields.COMPLETION, fields.EMBEDDING])
def test_every_field_is_told(known):
    text = DOC.read_text()
    assert [name for name in known if f"`{name}`" not in text and f"`{name}." not in text and f"`{name}=" not in text] == []
