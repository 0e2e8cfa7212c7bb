"""The CUDA kernels of the scan: the matrix stays in registers, only vectors are streamed.

A program owns some rows `i` of the memory of one sequence, with all columns `j`: rows do not
depend on each other, so the forward pass needs no exchange. It loops over the steps of one segment
of time; the whole sequence is one segment unless segments run in parallel. The state is stored
every `STORE` steps, and the backward pass replays each chunk of steps from there. A program of the
backward kernel owns columns with all rows instead: three of its five sums are then complete.

Layouts: vectors `[B, T, H]`, states `[segments or stored states, B, H, H]`, all contiguous float32.
Lanes beyond H load zeros, so with finite inputs their memory stays zero; steps beyond T load zeros,
so they change nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gate(theta, vc, GATE: tl.constexpr):
    """`1 + tanh(theta x vc)` as `2 * sigmoid(2 z)`, which is accurate near 0 too.

    `2 / (1 + e)` is computed as `1 / (0.5 + e / 2)`: the exponent takes the division, which saves
    a product per element.

    `"portable"` and `"exact"` are the same formula; the first runs in the interpreter, the second
    leaves out the handling of denormal numbers around the hardware's exponential and reciprocal.
    """
    if GATE == "fast":
        z = theta[:, None] * vc[None, :]
        asm: tl.constexpr = "tanh.approx.f32 $0, $1;"
        gate = 1.0 + tl.inline_asm_elementwise(asm, "=f,f", [z], tl.float32, True, 1)
    else:
        # -2 / log(2), per row rather than per element
        z = (theta * -2.8853900817779268)[:, None] * vc[None, :] - 1.0
        if GATE == "exact":
            # 0f3F000000 is 0.5
            asm: tl.constexpr = """{
                .reg .f32 e;
                ex2.approx.ftz.f32 e, $1;
                add.f32 e, e, 0f3F000000;
                rcp.approx.ftz.f32 $0, e;
            }"""
            gate = tl.inline_asm_elementwise(asm, "=f,f", [z], tl.float32, True, 1)
        else:
            gate = 1.0 / (0.5 + tl.exp2(z))
    return gate


@triton.jit
def _clamped(memory, clamp):
    # written so that NaN stays NaN
    memory = tl.where(memory > clamp, clamp, memory)
    return tl.where(memory < -clamp, -clamp, memory)


@triton.jit
def _write(memory, theta, vc, v, k, clamp, CLAMP: tl.constexpr, GATE: tl.constexpr):
    """The memory after a step, from the one that enters it."""
    memory = memory * _gate(theta, vc, GATE) + v[:, None] * k[None, :]
    if CLAMP:
        memory = _clamped(memory, clamp)
    return memory


@triton.jit
def _tile(H: tl.constexpr, LINES: tl.constexpr, WIDTH: tl.constexpr):
    """Sequence, tile, the tile's rows or columns, and all columns or rows."""
    TILES: tl.constexpr = (H + LINES - 1) // LINES
    b = (tl.program_id(0) // TILES).to(tl.int64)
    tile = tl.program_id(0) % TILES
    return b, tile, tile * LINES + tl.arange(0, LINES), tl.arange(0, WIDTH)


@triton.jit
def _vector(ptrs, lines, limit):
    """The elements of a vector that a tile needs, and zeros from `limit` on."""
    return tl.load(ptrs + lines, mask=lines < limit, other=0.0)


@triton.jit
def _state(b, i, j, H: tl.constexpr):
    """Offsets of rows and columns in a state `[B, H, H]`, and their mask."""
    return (b * H + i[:, None]) * H + j[None, :], (i < H)[:, None] & (j < H)[None, :]


@triton.jit(do_not_specialize=["B", "T", "segment"])
def scan_forward_kernel(
    theta_ptr, vc_ptr, v_ptr, k_ptr, q_ptr, is_init_ptr, start_ptr,
    y_ptr, final_ptr, checkpoints_ptr,
    clamp, B, T, segment,
    H: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STORE: tl.constexpr,
    STAGES: tl.constexpr, RESETS: tl.constexpr, CLAMP: tl.constexpr, SAVE: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """Write and read over one segment of `segment` steps, from the state that enters it."""
    b, _, i, j = _tile(H, ROWS, WIDTH)
    offsets, mask = _state(b, i, j, H)
    n = tl.program_id(1).to(tl.int64)
    state_size = B.to(tl.int64) * H * H
    memory = tl.load(start_ptr + n * state_size + offsets, mask=mask, other=0.0)
    first = n * segment
    last = tl.minimum(first + segment, T)
    row = b * T
    for t in tl.range(first, last, num_stages=STAGES):
        at = (row + t) * H
        theta = _vector(theta_ptr + at, i, H)
        v = _vector(v_ptr + at, i, H)
        vc = _vector(vc_ptr + at, j, H)
        k = _vector(k_ptr + at, j, H)
        q = _vector(q_ptr + at, j, H)
        if SAVE:
            if t % STORE == 0:
                tl.store(checkpoints_ptr + t // STORE * state_size + offsets, memory, mask=mask)
        if RESETS:
            memory = tl.where(tl.load(is_init_ptr + row + t) != 0, 0.0, memory)
        memory = _write(memory, theta, vc, v, k, clamp, CLAMP, GATE)
        tl.store(y_ptr + at + i, tl.sum(memory * q[None, :], axis=1), mask=i < H)
    if last == T:
        tl.store(final_ptr + offsets, memory, mask=mask)


@triton.jit(do_not_specialize=["B", "T", "segment", "offset", "span"])
def scan_backward_kernel(
    dy_ptr, theta_ptr, vc_ptr, v_ptr, k_ptr, q_ptr, is_init_ptr, checkpoints_ptr, adjoint_ptr,
    dtheta_ptr, dv_ptr, dvc_ptr, dk_ptr, dq_ptr,
    clamp, B, T, segment, offset, span,
    H: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    STORE: tl.constexpr, STAGES: tl.constexpr, RESETS: tl.constexpr, CLAMP: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """Run the adjoint through one span of every segment, chunk by chunk, from last to first.

    The span has `span` steps and begins `offset` steps after its segment; the adjoint that enters
    it is replaced by the one that leaves it. With `P_t = G_t * M_{t-1}` the gradient of the gate's
    argument is `D_t * P_t * (2 - G_t)`: neither the memory before the step nor a division is
    needed, and at a reset it is zero. Sums over rows are complete; sums over columns (dtheta, dv)
    are those of this tile's columns, `[tiles, B, segments, span, H]`.
    """
    b, tile, j, i = _tile(H, COLUMNS, WIDTH)
    offsets, mask = _state(b, i, j, H)
    n = tl.program_id(1).to(tl.int64)
    state_size = B.to(tl.int64) * H * H
    adjoint_ptrs = adjoint_ptr + n * state_size + offsets
    adjoint = tl.load(adjoint_ptrs, mask=mask, other=0.0)
    first = n * segment + offset
    last = tl.minimum(tl.minimum(first + span, (n + 1) * segment), T)
    row = b * T
    partial = ((tile * B + b) * tl.num_programs(1) + n) * span - first
    chunks = (last - first + CHUNK - 1) // CHUNK
    for c in range(chunks):
        start = first + (chunks - 1 - c) * CHUNK
        stored = start // STORE
        memory = tl.load(checkpoints_ptr + stored * state_size + offsets, mask=mask, other=0.0)
        if STORE > CHUNK:
            for t in tl.range(stored * STORE, start, num_stages=STAGES):
                at = (row + t) * H
                theta = _vector(theta_ptr + at, i, H)
                v = _vector(v_ptr + at, i, H)
                vc = _vector(vc_ptr + at, j, H)
                k = _vector(k_ptr + at, j, H)
                if RESETS:
                    memory = tl.where(tl.load(is_init_ptr + row + t) != 0, 0.0, memory)
                memory = _write(memory, theta, vc, v, k, clamp, CLAMP, GATE)
        products = ()
        for s in tl.static_range(CHUNK):
            t = start + s
            at = (row + t) * H
            # one comparison covers both the step and the lane
            limit = tl.where(t < last, H, 0)
            theta = _vector(theta_ptr + at, i, limit)
            v = _vector(v_ptr + at, i, limit)
            vc = _vector(vc_ptr + at, j, limit)
            k = _vector(k_ptr + at, j, limit)
            if RESETS:
                reset = tl.load(is_init_ptr + row + t, mask=t < last, other=0) != 0
                memory = tl.where(reset, 0.0, memory)
            product = memory * _gate(theta, vc, GATE)
            products = products + (product,)
            memory = product + v[:, None] * k[None, :]
            if CLAMP:
                memory = _clamped(memory, clamp)
        for r in tl.static_range(CHUNK):
            t = start + CHUNK - 1 - r
            at = (row + t) * H
            limit = tl.where(t < last, H, 0)
            theta = _vector(theta_ptr + at, i, limit)
            v = _vector(v_ptr + at, i, limit)
            dy = _vector(dy_ptr + at, i, limit)
            vc = _vector(vc_ptr + at, j, limit)
            k = _vector(k_ptr + at, j, limit)
            q = _vector(q_ptr + at, j, limit)
            product = products[CHUNK - 1 - r]
            memory = product + v[:, None] * k[None, :]
            adjoint += dy[:, None] * q[None, :]
            if CLAMP:
                # the bound itself passes gradients, as in torch.clamp
                adjoint = tl.where(tl.abs(memory) <= clamp, adjoint, 0.0)
                memory = _clamped(memory, clamp)
            gate = _gate(theta, vc, GATE)
            weighted = adjoint * product
            dz = weighted * 2.0 - weighted * gate
            dq = tl.sum(dy[:, None] * memory, axis=0)
            dk = tl.sum(v[:, None] * adjoint, axis=0)
            dvc = tl.sum(theta[:, None] * dz, axis=0)
            tl.store(dq_ptr + at + j, dq, mask=j < limit)
            tl.store(dk_ptr + at + j, dk, mask=j < limit)
            tl.store(dvc_ptr + at + j, dvc, mask=j < limit)
            rows = (partial + t) * H + i
            tl.store(dv_ptr + rows, tl.sum(adjoint * k[None, :], axis=1), mask=i < limit)
            tl.store(dtheta_ptr + rows, tl.sum(dz * vc[None, :], axis=1), mask=i < limit)
            adjoint = adjoint * gate
            if RESETS:
                reset = tl.load(is_init_ptr + row + t, mask=t < last, other=0) != 0
                adjoint = tl.where(reset, 0.0, adjoint)
    tl.store(adjoint_ptrs, adjoint, mask=mask)


@triton.jit(do_not_specialize=["B", "T", "segment"])
def segment_kernel(
    theta_ptr, vc_ptr, rows_ptr, columns_ptr, is_init_ptr, decay_ptr, local_ptr,
    B, T, segment,
    H: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
    RESETS: tl.constexpr, ADJOINT: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """What a segment does to the state that enters it, `decay * state + local`, for all at once.

    Forward, rows and columns are v and k: `local` is the memory that the segment leaves if it
    starts empty. With `ADJOINT` they are dy and q, and `local` is the gradient of the entering
    memory by the outputs before the segment's first reset. Where a segment has a reset, nothing
    passes through it and `decay` is not used.
    """
    b, _, i, j = _tile(H, ROWS, WIDTH)
    offsets, mask = _state(b, i, j, H)
    n = tl.program_id(1).to(tl.int64)
    first = n * segment
    last = tl.minimum(first + segment, T)
    row = b * T
    decay = tl.full((ROWS, WIDTH), 1.0, tl.float32)
    local = tl.zeros((ROWS, WIDTH), tl.float32)
    # an integer, because the type of a variable must not change in a loop
    resets = 0
    for t in tl.range(first, last, num_stages=STAGES):
        at = (row + t) * H
        theta = _vector(theta_ptr + at, i, H)
        rows = _vector(rows_ptr + at, i, H)
        vc = _vector(vc_ptr + at, j, H)
        columns = _vector(columns_ptr + at, j, H)
        if RESETS:
            reset = tl.load(is_init_ptr + row + t).to(tl.int32)
            resets += reset
            if not ADJOINT:
                local = tl.where(reset != 0, 0.0, local)
        gate = _gate(theta, vc, GATE)
        outer = rows[:, None] * columns[None, :]
        decay = decay * gate
        if ADJOINT:
            local += tl.where(resets == 0, decay * outer, 0.0)
        else:
            local = local * gate + outer
    state = n * B.to(tl.int64) * H * H + offsets
    tl.store(decay_ptr + state, decay, mask=mask)
    tl.store(local_ptr + state, local, mask=mask)


@triton.jit(do_not_specialize=["B", "segments"])
def combine_kernel(
    edge_ptr, decay_ptr, local_ptr, has_reset_ptr,
    B, segments,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    RESETS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Replace `local` of each segment by the state that enters it, from `edge` on, in place.

    Forward in time that is the memory before the segment; with `REVERSE` the adjoint after it.
    """
    BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    b = (tl.program_id(0) // BLOCKS).to(tl.int64)
    at = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mask = at < SIZE
    offsets = b * SIZE + at
    state = tl.load(edge_ptr + offsets, mask=mask, other=0.0)
    state_size = B.to(tl.int64) * SIZE
    for step in tl.range(0, segments, num_stages=STAGES):
        n = segments - 1 - step if REVERSE else step
        decay = tl.load(decay_ptr + n * state_size + offsets, mask=mask, other=0.0)
        local = tl.load(local_ptr + n * state_size + offsets, mask=mask, other=0.0)
        tl.store(local_ptr + n * state_size + offsets, state, mask=mask)
        passed = state * decay
        if RESETS:
            # selected, not multiplied: a NaN before the reset stays there
            passed = tl.where(tl.load(has_reset_ptr + b * segments + n) != 0, 0.0, passed)
        state = passed + local


@triton.jit(do_not_specialize=["B"])
def step_kernel(
    theta_ptr, vc_ptr, v_ptr, k_ptr, q_ptr, memory_ptr, y_ptr, out_ptr,
    clamp, B,
    H: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    CLAMP: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """One step: calibrate, write and read; `out` may be `memory` itself."""
    b, _, i, j = _tile(H, ROWS, WIDTH)
    offsets, mask = _state(b, i, j, H)
    at = b * H
    memory = tl.load(memory_ptr + offsets, mask=mask, other=0.0)
    theta = _vector(theta_ptr + at, i, H)
    v = _vector(v_ptr + at, i, H)
    vc = _vector(vc_ptr + at, j, H)
    k = _vector(k_ptr + at, j, H)
    q = _vector(q_ptr + at, j, H)
    memory = _write(memory, theta, vc, v, k, clamp, CLAMP, GATE)
    tl.store(out_ptr + offsets, memory, mask=mask)
    tl.store(y_ptr + at + i, tl.sum(memory * q[None, :], axis=1), mask=i < H)
