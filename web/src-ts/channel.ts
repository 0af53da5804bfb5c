// Calls across a message port, in both directions: answers, progress, cancelling, transferred buffers.

import { asOxcowError, cancelled, OxcowError, type ErrorRecord } from './errors.js';

/** The part of `Worker`, `MessagePort` and a worker's own scope that a channel needs. */
export interface Port {
  postMessage(message: unknown, transfer: Transferable[]): void;
  addEventListener(type: 'message', listener: (event: MessageEvent) => void): void;
}

export interface CallOptions {
  signal?: AbortSignal | undefined;
  onProgress?: ((done: number, total: number) => void) | undefined;
  transfer?: Transferable[];
}

/** What a handler is told about the call that it serves. */
export interface Call {
  signal: AbortSignal;
  progress(done: number, total: number): void;
}

export type Handler = (args: never, call: Call) => unknown;

type Message =
  | { type: 'call'; id: number; method: string; args: unknown }
  | { type: 'cancel'; id: number }
  | { type: 'progress'; id: number; done: number; total: number }
  | { type: 'answer'; id: number; value: unknown }
  | { type: 'error'; id: number; error: ErrorRecord };

/** A value whose buffers are to be moved, not copied, to the other side. */
class Moved {
  constructor(
    readonly value: unknown,
    readonly transfer: Transferable[],
  ) {}
}

/** Marks a handler's result as one whose bytes are moved to the caller. */
export function moved(bytes: Uint8Array): unknown {
  // A view of a larger buffer (or of wasm memory) cannot be moved without taking its neighbours along.
  const own = bytes.byteLength === bytes.buffer.byteLength ? bytes : bytes.slice();
  return new Moved(own, [own.buffer as ArrayBuffer]);
}

interface Waiting {
  resolve(value: unknown): void;
  reject(error: OxcowError): void;
  onProgress: ((done: number, total: number) => void) | undefined;
}

/** One end of a channel; both ends may call and both may serve. */
export class Channel {
  #port: Port;
  #handlers: Record<string, Handler>;
  #waiting = new Map<number, Waiting>();
  #serving = new Map<number, AbortController>();
  #next = 1;
  #closed: OxcowError | undefined;

  constructor(port: Port, handlers: Record<string, Handler>) {
    this.#port = port;
    this.#handlers = handlers;
    port.addEventListener('message', (event) => this.#receive(event.data as Message));
  }

  /** Calls `method` on the other side. */
  call(method: string, args: unknown, options: CallOptions = {}): Promise<unknown> {
    if (this.#closed) return Promise.reject(this.#closed);
    const { signal, onProgress } = options;
    if (signal?.aborted) return Promise.reject(cancelled(signal));
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const abort = () => {
        // The caller need not wait until the other side has noticed.
        this.#waiting.delete(id);
        this.#port.postMessage({ type: 'cancel', id } satisfies Message, []);
        reject(cancelled(signal));
      };
      const done = () => signal?.removeEventListener('abort', abort);
      this.#waiting.set(id, {
        resolve: (value) => (done(), resolve(value)),
        reject: (error) => (done(), reject(error)),
        onProgress,
      });
      signal?.addEventListener('abort', abort);
      try {
        this.#port.postMessage({ type: 'call', id, method, args } satisfies Message, options.transfer ?? []);
      } catch (error) {
        this.#waiting.delete(id);
        done();
        reject(asOxcowError(error));
      }
    });
  }

  /** Fails every call under way and every later one. */
  close(error: OxcowError): void {
    this.#closed ??= error;
    for (const waiting of this.#waiting.values()) waiting.reject(error);
    this.#waiting.clear();
    for (const serving of this.#serving.values()) serving.abort(error);
  }

  #receive(message: Message): void {
    switch (message.type) {
      case 'call':
        void this.#serve(message.id, message.method, message.args);
        break;
      case 'cancel':
        this.#serving.get(message.id)?.abort();
        break;
      case 'progress':
        this.#waiting.get(message.id)?.onProgress?.(message.done, message.total);
        break;
      case 'answer':
        this.#take(message.id)?.resolve(message.value);
        break;
      case 'error':
        this.#take(message.id)?.reject(OxcowError.fromRecord(message.error));
        break;
    }
  }

  #take(id: number): Waiting | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    return waiting;
  }

  async #serve(id: number, method: string, args: unknown): Promise<void> {
    const controller = new AbortController();
    this.#serving.set(id, controller);
    const post = (message: Message, transfer: Transferable[] = []) => this.#port.postMessage(message, transfer);
    try {
      const handler = this.#handlers[method];
      if (!handler) throw new OxcowError('internal', `There is no method '${method}'`);
      const value = await handler(args as never, {
        signal: controller.signal,
        progress: (done, total) => post({ type: 'progress', id, done, total }),
      });
      if (value instanceof Moved) post({ type: 'answer', id, value: value.value }, value.transfer);
      else post({ type: 'answer', id, value });
    } catch (error) {
      post({ type: 'error', id, error: asOxcowError(error).toRecord() });
    } finally {
      this.#serving.delete(id);
    }
  }
}
