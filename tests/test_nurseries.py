"""`open_unwrapping_nursery`: what comes out of it is what went wrong, and not its wrapping."""

from __future__ import annotations

import pytest
import trio

from sandd._core.nurseries import open_unwrapping_nursery


async def fail(error: Exception) -> None:
    """A child that raises."""
    raise error


async def fail_when_cancelled(error: Exception) -> None:
    """A child that raises as soon as it is cancelled."""
    try:
        await trio.sleep_forever()
    finally:
        raise error


async def test_a_body_that_ends_well_waits_for_its_children() -> None:
    """As any nursery."""
    done = []
    async with open_unwrapping_nursery() as nursery:

        @nursery.start_soon
        async def child() -> None:
            await trio.lowlevel.checkpoint()
            done.append(True)

    assert done == [True]


async def test_the_bodys_exception_leaves_as_itself() -> None:
    """The same object, without a cause, a context or a note that we added; children are cancelled."""
    error = KeyError("ours")
    with trio.fail_after(5), pytest.raises(KeyError) as caught:  # noqa: PT012 - the block is what is tested
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert not hasattr(error, "__notes__")


async def test_a_group_of_the_bodys_leaves_as_itself() -> None:
    """A group of one is a group, as its raiser meant it, also where the nursery was cancelled."""
    for cancelled in (False, True):
        group = ExceptionGroup("ours", [ExceptionGroup("inner", [KeyError("leaf")])])
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the block is what is tested
            async with open_unwrapping_nursery() as nursery:
                if cancelled:
                    nursery.cancel_scope.cancel()
                raise group
        assert caught.value is group


async def test_a_cancellation_that_ends_here_is_taken_out_of_the_bodys_group() -> None:
    """It must not go further than its scope; the rest of the group stays."""
    error = KeyError("leaf")
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the block is what is tested
        async with open_unwrapping_nursery() as outer:
            async with trio.open_nursery() as inner:
                inner.start_soon(fail_when_cancelled, error)
                inner.start_soon(trio.sleep_forever)
                await trio.lowlevel.checkpoint()
                outer.cancel_scope.cancel()
                await trio.sleep_forever()
    assert caught.value.exceptions == (error,)


async def test_what_fails_beside_the_body_is_a_note() -> None:
    """The body's exception is the one that counts; what its end brought about is told with it."""
    error = KeyError("ours")
    with pytest.raises(KeyError) as caught:  # noqa: PT012 - the block is what is tested
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, OSError("theirs"))
            await trio.lowlevel.checkpoint()
            raise error
    assert caught.value is error
    assert [note for note in error.__notes__ if "OSError('theirs')" in note]


async def test_a_lone_childs_exception_leaves_as_itself() -> None:
    """A body that is cancelled by it raises nothing of its own."""
    error = OSError("theirs")
    with pytest.raises(OSError, match="theirs") as caught:  # noqa: PT012 - the block is what is tested
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert caught.value is error


async def test_several_childrens_exceptions_stay_a_group() -> None:
    """None of them is the cause of the others."""
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the block is what is tested
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(fail, OSError("one"))
            nursery.start_soon(fail, OSError("two"))
    assert {str(error) for error in caught.value.exceptions} == {"one", "two"}


async def test_cancellation_from_outside_is_no_failure() -> None:
    """It passes, and the scope it belongs to catches it."""
    with trio.move_on_after(0.01) as scope:
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_cancellation_from_outside_does_not_hide_a_failure() -> None:
    """What a child raises when it is cancelled comes out of the scope, as itself."""
    error = OSError("theirs")
    with pytest.raises(OSError, match="theirs") as caught:  # noqa: PT012 - the block is what is tested
        with trio.move_on_after(0.01):
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(fail_when_cancelled, error)
                await trio.sleep_forever()
    assert caught.value is error


async def test_cancelling_the_nursery_itself_is_a_good_end() -> None:
    """Nothing is raised, whatever the children were doing."""
    with trio.fail_after(5):
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.cancel_scope.cancel()
            await trio.sleep_forever()


async def test_keyboard_interrupt_leaves_as_itself() -> None:
    """What ends programs is not wrapped either."""
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is what is tested
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise KeyboardInterrupt
