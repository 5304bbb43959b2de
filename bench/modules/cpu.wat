;; The loop of `berth-work cpu`: xorshift, one step a turn. Writes how many nanoseconds it took, 8 bytes little-endian, and the
;; last state behind them, so that nothing of it can be left out.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (local $x i64) (local $left i32)
    (local.set $x (i64.const 88172645463325252))
    (local.set $left (i32.const 50000000))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 64)))
    (loop $next
      (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 13))))
      (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 7))))
      (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 17))))
      (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 72)))
    (i64.store (i32.const 16) (i64.sub (i64.load (i32.const 72)) (i64.load (i32.const 64))))
    (i64.store (i32.const 24) (local.get $x))
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 16))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
