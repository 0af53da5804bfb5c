// What the Rust crate oxcow-web exports without its feature `write`, as wasm-bindgen writes it to
// dist/wasm/oxcow_reader.js. Written by hand, so that the package type-checks before the engine is built; the tests
// run both together.

/** An array of bytes as the engine reads and writes it: every call may answer at once or by a promise. */
export interface EngineSource {
  name: string;
  /** As far as completed writes go. */
  length(): number;
  /** Every read is dear: fetch windows like these and keep them. Never for what is written to. */
  windows: EngineWindows | undefined;
  /** Whether `readInto` is to be used instead of `read`. */
  direct: boolean;
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>;
  /** `into` is the engine's memory, there only during the call. */
  readInto(offset: number, into: Uint8Array): number;
  /** Nobody waits for this answer of `read` any more. */
  cancel(answer: Promise<unknown>): void;
  /** `bytes` is the engine's memory, there only during the call. */
  write(offset: number, bytes: Uint8Array): void | Promise<void>;
  truncate(length: number): void | Promise<void>;
  /** The barrier; waits also for what nobody waits for any more. */
  flush(): void | Promise<void>;
  /** Resolves after the event loop has turned once. */
  turn(): Promise<void>;
}

/** In bytes, but for `parallel`. */
export interface EngineWindows {
  windowBytes: number;
  longestBytes: number;
  cacheBytes: number;
  parallel: number;
}

/** How a caller follows and stops an operation that may be long. */
export interface EngineControl {
  cancelled(): boolean;
  /** Resolves when `cancelled` changes, or when the operation is over; `undefined` where nothing can stop it. */
  stopped: Promise<void> | undefined;
  progress(done: number, total: number): void;
}

export interface EngineOptions {
  format: string | undefined;
  ignoreBacking: boolean;
  ignoreDataFile: boolean;
  cacheBytes: number | undefined;
  /** Both are for the module with everything. */
  writable: boolean;
  repair: boolean;
}

/** Answers for a file that an image names; `undefined` refuses it. */
export type EngineResolve = (wanted: {
  role: 'backing' | 'data-file';
  name: string;
  base: string;
  format: string | undefined;
  depth: number;
}) => Promise<EngineSource | undefined>;

export class EngineImage {
  static open(
    source: EngineSource,
    options: EngineOptions,
    resolve: EngineResolve,
    control: EngineControl,
  ): Promise<EngineImage>;
  /** Whether it was opened for writing, and is an object of the module with everything. */
  readonly writable: boolean;
  virtualSize(): bigint;
  usedSnapshot(): string | undefined;
  info(): Promise<unknown>;
  snapshots(): Promise<unknown>;
  bitmaps(): Promise<unknown>;
  map(start: bigint, length: bigint, limit: number, control: EngineControl): Promise<unknown>;
  overview(
    start: bigint,
    length: bigint,
    cells: number,
    control: EngineControl,
  ): Promise<{ shares: Uint8Array; totals: (number | bigint)[] }>;
  check(control: EngineControl): Promise<unknown>;
  read(offset: bigint, length: number, control: EngineControl): Promise<Uint8Array>;
  /** Whether `readNow` may be of use. */
  readonly direct: boolean;
  /** As `read`, at once and into `into`; `false`: not done, for whatever reason. */
  readNow(offset: number, into: Uint8Array): boolean;
  /** Lets the event loop turn if that is due, which is one reason for a `false` of `readNow`; tells whether it was. */
  turnIfDue(): Promise<boolean>;
  useSnapshot(idOrName: string | undefined): Promise<void>;
  openSnapshot(idOrName: string): Promise<EngineImage>;
  free(): void;
}

export function inspect(source: EngineSource, control: EngineControl): Promise<unknown>;

export default function init(options: { module_or_path: unknown }): Promise<unknown>;
export function initSync(options: { module: unknown }): unknown;
