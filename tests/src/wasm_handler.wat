;; An HTTP handler that answers `hello`, unless the path's first letter asks for something else. For `c` it answers
;; how many of these its instance was asked, up to 9.
(module
  (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $timer (param i64) (result i32)))
  (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
  (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
    (func $write (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $drop_stream (param i32)))
  (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.0" "[method]incoming-request.path-with-query" (func $path (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-response.body" (func $body (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-body.write" (func $stream (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[static]outgoing-body.finish" (func $finish (param i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.0" "[static]response-outparam.set"
    (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "hello\n0\n")
  ;; Results are written at 64 and after, strings at 1024 and after.
  (global $free (mut i32) (i32.const 1024))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    global.get $free
    (global.set $free (i32.and (i32.add (i32.add (global.get $free) (local.get 3)) (i32.const 15)) (i32.const -8))))
  (func $is (param $letter i32) (result i32)
    (i32.eq (i32.load8_u offset=1 (i32.load (i32.const 68))) (local.get $letter)))
  (func (export "wasi:http/incoming-handler@0.2.0#handle") (param $request i32) (param $out i32)
    (local $response i32) (local $body i32) (local $stream i32) (local $text i32) (local $length i32)
    (local.set $length (i32.const 6))
    (call $path (local.get $request) (i32.const 64))
    (if (call $is (i32.const 115)) (then (loop $spin (br $spin)))) ;; s: spin
    (if (call $is (i32.const 116)) (then unreachable)) ;; t: trap
    (if (call $is (i32.const 101)) ;; e: eat, until there is no more
      (then (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))))
    (if (call $is (i32.const 119)) (then (call $block (call $timer (i64.const 1000000000))))) ;; w: wait a second
    (if (call $is (i32.const 108)) (then (call $block (call $timer (i64.const 100000000000))))) ;; l: wait long
    (if (call $is (i32.const 110)) (then return)) ;; n: no answer
    (if (call $is (i32.const 99)) ;; c: count
      (then
        (i32.store8 (i32.const 6) (i32.add (i32.load8_u (i32.const 6)) (i32.const 1)))
        (local.set $text (i32.const 6))
        (local.set $length (i32.const 2))))
    (local.set $response (call $response (call $fields)))
    (call $body (local.get $response) (i32.const 80))
    (local.set $body (i32.load (i32.const 84)))
    (call $stream (local.get $body) (i32.const 96))
    (local.set $stream (i32.load (i32.const 100)))
    (call $set (local.get $out) (i32.const 0) (local.get $response)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $write (local.get $stream) (local.get $text) (local.get $length) (i32.const 112))
    (call $drop_stream (local.get $stream))
    (call $finish (local.get $body) (i32.const 0) (i32.const 0) (i32.const 256))))
