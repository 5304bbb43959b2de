;; A command that makes an HTTP request. It ends well if it is told that this is denied.
(module
  (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
  (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
    (func $set_authority (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-path-with-query"
    (func $set_path (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]future-incoming-response.subscribe"
    (func $subscribe (param i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]future-incoming-response.get" (func $get (param i32 i32)))
  (import "wasi:http/outgoing-handler@0.2.0" "handle" (func $handle (param i32 i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "localhost/")
  ;; Results are written at 64 and after, strings at 1024.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
  ;; At an address there are results within each other, each with its case in the first byte, and last the error code.
  (func (export "wasi:cli/run@0.2.0#run") (result i32)
    (local $request i32) (local $future i32)
    (local.set $request (call $request (call $fields)))
    (drop (call $set_authority (local.get $request) (i32.const 1) (i32.const 0) (i32.const 9)))
    (drop (call $set_path (local.get $request) (i32.const 1) (i32.const 9) (i32.const 1)))
    (call $handle (local.get $request) (i32.const 0) (i32.const 0) (i32.const 64))
    (if (i32.load8_u (i32.const 64)) (then unreachable))
    (local.set $future (i32.load (i32.const 72)))
    (call $block (call $subscribe (local.get $future)))
    (call $get (local.get $future) (i32.const 128))
    (if (i32.ne (i32.load8_u (i32.const 128)) (i32.const 1)) (then unreachable)) ;; there is an answer
    (if (i32.load8_u (i32.const 136)) (then unreachable)) ;; got for the first time
    (if (i32.ne (i32.load8_u (i32.const 144)) (i32.const 1)) (then unreachable)) ;; which is an error
    (i32.ne (i32.load8_u (i32.const 152)) (i32.const 15)))) ;; HTTP-request-denied
