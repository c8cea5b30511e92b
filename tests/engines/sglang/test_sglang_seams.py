"""The list of seams is right for the installed SGLang."""

import pytest
import seams
import sglang_here

pytestmark = pytest.mark.skipif(not sglang_here.HAS_SGLANG, reason=sglang_here.WITHOUT)


def test_everything_is_there() -> None:
    assert seams.missing(seams.reader(seams.installed("sglang")), seams.SGLANG) == []
