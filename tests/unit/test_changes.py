"""The edits and the batch that are read from commits of an agent's memory."""

import pytest

from sidecar.letta.changes import Edit, batch_of, edits_of

pytestmark = pytest.mark.unit

NEW = """\
diff --git a/human.md b/human.md
new file mode 100644
index 0000000..699b10b
--- /dev/null
+++ b/human.md
@@ -0,0 +1,5 @@
+---
+name: Human
+description: who calls
+---
+Name: Ada
"""
CHANGED = """\
diff --git a/human.md b/human.md
index 699b10b..0e63f3d 100644
--- a/human.md
+++ b/human.md
@@ -3,3 +3,4 @@ name: Human
 description: who calls
 ---
 Name: Ada
-Home: Lyon
+Home: Oslo
+--- a line of dashes
diff --git a/system/calls.md b/system/calls.md
index 699b10b..0e63f3d 100644
--- a/system/calls.md
+++ b/system/calls.md
@@ -1 +1,2 @@
+-- asked for a table
"""


def test_a_new_block_is_its_value() -> None:
    """The edit of a new file consists of the lines below its head."""
    assert edits_of(NEW) == (Edit("human", (), ("Name: Ada",)),)


def test_a_change_is_told_block_by_block() -> None:
    """Removed and added lines are listed per block, even if they look like a diff's own lines."""
    assert edits_of(CHANGED) == (
        Edit("human", ("Home: Lyon",), ("Home: Oslo", "--- a line of dashes")),
        Edit("calls", (), ("-- asked for a table",)),
    )


def test_an_empty_diff_changed_nothing() -> None:
    """A commit without a diff has no edits."""
    assert edits_of("") == ()


def test_a_commit_names_its_batch_or_none() -> None:
    """A commit names a batch only if its subject is one of ours."""
    batch = "7dc47e3f-6ed5-40c6-914c-dc016b3959a1"
    assert batch_of(f"voice batch {batch}: memory_insert 229fdeb035e0e175") == batch
    assert not batch_of("chore: initialize local memory")
