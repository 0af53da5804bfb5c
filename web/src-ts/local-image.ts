// An image that the engine in this thread has opened.

import { OxcowError } from './errors.js';
import { controlled, run } from './run.js';
import { newImage, openEmpty } from './new-image.js';
import type { Opened } from './storage/engine.js';
import type { Storage } from './storage/types.js';
import { exportOf, extentsOf, streamOf, toBigInt, toRange, toSize, type Exported } from './stream.js';
import type {
  Bitmap,
  CheckReport,
  DiskImage,
  ImageInfo,
  LongOptions,
  MapOptions,
  MapPage,
  Overview,
  OverviewOptions,
  Size,
  Snapshot,
  StreamOptions,
  Traffic,
} from './types.js';
import type { EngineControl, EngineImage as EngineReader } from './wasm/oxcow_reader.js';
import type { EngineImage } from './wasm/oxcow_web.js';
import type {
  ConvertOptions,
  ExportOptions,
  HydrateOptions,
  HydrationEnd,
  HydrationStatus,
  RepairReport,
  ResizeOptions,
  SnapshotOptions,
  ViewOptions,
} from './writing.js';

/** Bytes up to which a read makes its array before it is known whether it can be read at once. */
const LONGEST_AT_ONCE = 64 << 20;

/** What an image is made of. */
export interface Parts {
  /** The engine's object: of the module with everything where it is open for writing. */
  engine: EngineReader;
  /** Opens the same image in the module with everything, for what only that can; absent where it is there already. */
  again?: (control: EngineControl) => Promise<EngineImage>;
  traffic: Traffic;
  /** What is to be given back when it is closed, in this order. */
  files: Pick<Opened, 'close'>[];
  /** Called once, as soon as it is being closed. */
  closed: () => void;
}

export class LocalImage implements DiskImage {
  #engine: EngineReader | undefined;
  #parts: Omit<Parts, 'engine'>;
  /** Whether its file answers at once. */
  #direct: boolean;
  /** Calls under way: the engine's object is freed after the last of them. */
  #running = new Set<Promise<unknown>>();
  /** Snapshots of this image that are open. */
  #views = new Set<LocalImage>();
  /** Ends each export that is open. */
  #exports = new Set<() => void>();
  #closing: Promise<void> | undefined;

  constructor({ engine, ...parts }: Parts) {
    this.#engine = engine;
    this.#parts = parts;
    this.#direct = engine.direct;
  }

  get #open(): EngineReader {
    if (!this.#engine) throw new OxcowError('closed', 'The image is closed');
    return this.#engine;
  }

  async #run<T>(
    work: (engine: EngineReader, control: EngineControl) => T | Promise<T>,
    options: LongOptions = {},
  ): Promise<T> {
    const engine = this.#open;
    const running = controlled(options, (control) => work(engine, control));
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  /** As `#run`, for what only an image that is open for writing can do. */
  #change<T>(
    work: (engine: EngineImage, control: EngineControl) => T | Promise<T>,
    options: LongOptions = {},
  ): Promise<T> {
    return this.#run((engine, control) => {
      if (!engine.writable) throw new OxcowError('read-only', 'The image was not opened for writing');
      return work(engine as EngineImage, control);
    }, options);
  }

  /** As `#run`, for what only reads this image, but is in the module with everything. */
  #inFull<T>(
    work: (engine: EngineImage, control: EngineControl) => T | Promise<T>,
    options: LongOptions = {},
  ): Promise<T> {
    const { again } = this.#parts;
    return this.#run(async (engine, control) => {
      if (!again) return work(engine as EngineImage, control);
      const snapshot = engine.usedSnapshot();
      const full = await again(control);
      try {
        if (snapshot !== undefined) await full.useSnapshot(snapshot);
        return await work(full, control);
      } finally {
        full.free();
      }
    }, options);
  }

  get virtualSize(): Size {
    return toSize(this.#open.virtualSize());
  }

  get snapshot(): string | undefined {
    return this.#open.usedSnapshot();
  }

  info(): Promise<ImageInfo[]> {
    return this.#run((engine) => engine.info()) as Promise<ImageInfo[]>;
  }

  snapshots(): Promise<Snapshot[]> {
    return this.#run((engine) => engine.snapshots()) as Promise<Snapshot[]>;
  }

  bitmaps(): Promise<Bitmap[]> {
    return this.#run((engine) => engine.bitmaps()) as Promise<Bitmap[]>;
  }

  map(options: MapOptions = {}): Promise<MapPage> {
    return this.#run((engine, control) => {
      const { start, length } = toRange(options, this.virtualSize);
      return engine.map(start, length, options.limit ?? 1000, control);
    }, options) as Promise<MapPage>;
  }

  extents(options?: MapOptions) {
    return extentsOf(this, options);
  }

  overview(options: OverviewOptions): Promise<Overview> {
    return this.#run(async (engine, control) => {
      const { cells } = options;
      if (!Number.isInteger(cells) || cells < 1 || cells > 1 << 20) {
        throw new OxcowError('out-of-range', `cells must be 1 to ${1 << 20}, not ${cells}`);
      }
      const { start, length } = toRange(options, this.virtualSize);
      const { shares, totals } = await engine.overview(start, length, cells, control);
      return { start: toSize(start), length: toSize(length), cells, shares, totals };
    }, options);
  }

  check(options: LongOptions = {}): Promise<CheckReport> {
    return this.#run((engine, control) => engine.check(control), options) as Promise<CheckReport>;
  }

  async read(offset: Size, length: number, options: { signal?: AbortSignal } = {}): Promise<Uint8Array> {
    if (this.#isFree && Number.isInteger(length) && length >= 0 && length <= LONGEST_AT_ONCE) {
      const bytes = new Uint8Array(length);
      if (this.#readNow(offset, bytes, options) || (await this.#readNext(offset, bytes, options))) return bytes;
    }
    return this.#read(offset, length, options);
  }

  async readInto(offset: Size, into: Uint8Array, options: { signal?: AbortSignal } = {}): Promise<void> {
    // A call that has to wait takes its place behind the others at once.
    if (this.#isFree && (this.#readNow(offset, into, options) || (await this.#readNext(offset, into, options)))) return;
    into.set(await this.#read(offset, into.length, options));
  }

  /** Whether a read may be made without the engine's waiting for anything: it overtakes no call that is under way. */
  get #isFree(): boolean {
    return this.#direct && this.#running.size === 0;
  }

  /** Whether it could be read at once. */
  #readNow(offset: Size, into: Uint8Array, { signal }: { signal?: AbortSignal }): boolean {
    const engine = this.#open;
    if (!this.#isFree || typeof offset !== 'number' || signal?.aborted) return false;
    return engine.readNow(offset, into);
  }

  /** As `#readNow`, after the turn of the event loop that stood in the way. */
  async #readNext(offset: Size, into: Uint8Array, options: { signal?: AbortSignal }): Promise<boolean> {
    return (await this.#run((engine) => engine.turnIfDue())) && this.#readNow(offset, into, options);
  }

  #read(offset: Size, length: number, options: { signal?: AbortSignal }): Promise<Uint8Array> {
    return this.#run((engine, control) => {
      toRange({ start: offset, length }, this.virtualSize);
      return engine.read(toBigInt(offset, 'offset'), length, control);
    }, options);
  }

  stream(options?: StreamOptions): ReadableStream<Uint8Array> {
    return streamOf(this, options);
  }

  async useSnapshot(idOrName: string | undefined): Promise<void> {
    await this.#run((engine) => engine.useSnapshot(idOrName));
  }

  get writable(): boolean {
    return this.#open.writable;
  }

  async write(offset: Size, bytes: Uint8Array, options: { signal?: AbortSignal } = {}): Promise<void> {
    // What has to wait is copied: the caller may go on to use its bytes.
    const written = this.#writeNow(offset, bytes, options);
    if (written === 2) await this.#run((engine) => engine.turnIfDue());
    if (written) return;
    await this.#change((engine, control) => {
      toRange({ start: offset, length: bytes.length }, this.virtualSize);
      return engine.write(toBigInt(offset, 'offset'), bytes, control);
    }, options);
  }

  /** Whether it could be written at once, over data in place: 0 if not, 2 if others are to have a turn now. */
  #writeNow(offset: Size, bytes: Uint8Array, { signal }: { signal?: AbortSignal }): 0 | 1 | 2 {
    const engine = this.#open;
    if (!this.#isFree || !engine.writable || typeof offset !== 'number' || signal?.aborted) return 0;
    return bytes instanceof Uint8Array ? (engine as EngineImage).writeNow(offset, bytes) : 0;
  }

  writeCompressed(offset: Size, bytes: Uint8Array, options: { signal?: AbortSignal } = {}): Promise<void> {
    return this.#change((engine, control) => {
      toRange({ start: offset, length: bytes.length }, this.virtualSize);
      return engine.writeCompressed(toBigInt(offset, 'offset'), bytes, control);
    }, options);
  }

  writeZeroes(offset: Size, length: Size, options: { unmap?: boolean; signal?: AbortSignal } = {}): Promise<void> {
    return this.#change((engine, control) => {
      const range = toRange({ start: offset, length }, this.virtualSize);
      return engine.writeZeroes(range.start, range.length, options.unmap ?? false, control);
    }, options);
  }

  discard(offset: Size, length: Size, options: { signal?: AbortSignal } = {}): Promise<void> {
    return this.#change((engine, control) => {
      const range = toRange({ start: offset, length }, this.virtualSize);
      return engine.discard(range.start, range.length, control);
    }, options);
  }

  flush(): Promise<void> {
    return this.#change((engine) => engine.flush());
  }

  resize(size: Size, options: ResizeOptions = {}): Promise<void> {
    const { shrink = false, preallocation } = options;
    return this.#change((engine) => engine.resize(toBigInt(size, 'size'), shrink, preallocation));
  }

  repair(what: 'leaks' | 'all', options: LongOptions = {}): Promise<RepairReport> {
    return this.#change((engine, control) => {
      if (what !== 'leaks' && what !== 'all') {
        throw new OxcowError('out-of-range', `'leaks' or 'all' can be repaired, not '${String(what)}'`);
      }
      return engine.repair(what === 'leaks', control);
    }, options) as Promise<RepairReport>;
  }

  createSnapshot(name: string, options: SnapshotOptions = {}): Promise<Snapshot> {
    return this.#change(async (engine) => {
      const id = await create(engine, name, options);
      const snapshots = (await engine.snapshots()) as Snapshot[];
      const created = snapshots.find((snapshot) => snapshot.id === id);
      if (!created) throw new OxcowError('internal', `The snapshot '${id}' is not listed`);
      return created;
    });
  }

  applySnapshot(idOrName: string): Promise<void> {
    return this.#change((engine) => engine.applySnapshot(idOrName));
  }

  deleteSnapshot(idOrName: string): Promise<void> {
    return this.#change((engine) => engine.deleteSnapshot(idOrName));
  }

  openSnapshot(idOrName: string): Promise<LocalImage> {
    return this.#run(async (engine) => this.#seen(await engine.openSnapshot(idOrName)));
  }

  view(options: string | ViewOptions = {}): Promise<LocalImage> {
    const { name, copies, ...others } = typeof options === 'string' ? { name: options } : options;
    return copies ? this.#fleeced(copies, others) : this.#pinned(name);
  }

  /** A view that is kept by copying. */
  #fleeced(copies: Storage, options: Omit<ViewOptions, 'name' | 'copies'>): Promise<LocalImage> {
    return this.#change(async (engine, control) => {
      const { onError = 'break-write', timeout } = options;
      if (onError !== 'break-write' && onError !== 'break-view') {
        throw new OxcowError('out-of-range', `onError is 'break-write' or 'break-view', not '${String(onError)}'`);
      }
      const opened = await openEmpty(copies, this.#parts.traffic, options);
      try {
        return this.#seen(await engine.fleece(opened.engine, onError === 'break-view', timeout, control), opened.close);
      } catch (error) {
        await opened.close();
        throw error;
      }
    }, options);
  }

  /** A view that is kept by a snapshot. */
  #pinned(name: string | undefined): Promise<LocalImage> {
    return this.#change(async (engine) => {
      const id = await create(engine, name ?? `view of ${new Date().toISOString()}`, {});
      try {
        return this.#seen(await engine.openSnapshot(id), () => engine.deleteSnapshot(id));
      } catch (error) {
        await engine.deleteSnapshot(id).catch(() => {}); // Why it cannot be read is what matters.
        throw error;
      }
    });
  }

  /** A snapshot of this image that is read; `after` it is closed there is something to do. */
  #seen(engine: EngineReader, after?: () => Promise<void>): LocalImage {
    const files = after ? [{ close: after }] : [];
    const view = new LocalImage({ ...this.#parts, engine, files, closed: () => {} });
    this.#views.add(view);
    return view;
  }

  hydrate(options: HydrateOptions = {}): Promise<HydrationEnd> {
    return this.#change(async (engine, control) => {
      const { batchBytes, parallel, limitRate, quiet, patience, commitBytes, commitEvery, retries, retryDelay } = options;
      const numbers = { batchBytes, parallel, limitRate, quiet, patience, commitBytes, commitEvery, retries, retryDelay };
      for (const [what, value] of Object.entries(numbers)) {
        if (value !== undefined && !(value >= 0)) {
          throw new OxcowError('out-of-range', `${what} must not be ${value}`);
        }
      }
      const id = await engine.hydrate({ ...numbers, keepBacking: options.keepBacking ?? false }, control);
      return id === undefined ? {} : { neededBySnapshot: id };
    }, options);
  }

  hydration(): Promise<HydrationStatus> {
    return this.#inFull((engine) => engine.hydration()) as Promise<HydrationStatus>;
  }

  async pauseHydration(): Promise<void> {
    await this.#change((engine) => engine.pauseHydration(true));
  }

  async resumeHydration(): Promise<void> {
    await this.#change((engine) => engine.pauseHydration(false));
  }

  async setCopyOnRead(on: boolean): Promise<void> {
    await this.#change((engine) => engine.setCopyOnRead(on));
  }

  async convert(target: Storage, options: ConvertOptions = {}): Promise<void> {
    await this.#inFull(async (engine, control) => {
      const { format = 'raw', compress = false } = options;
      if (format !== 'raw' && format !== 'qcow2') {
        throw new OxcowError('unsupported', `A disk can be converted to 'raw' or 'qcow2', not '${String(format)}'`);
      }
      const wanted = format === 'qcow2' ? { ...newImage(options), size: engine.virtualSize() } : undefined;
      const opened = await openEmpty(target, this.#parts.traffic, options);
      try {
        await engine.convert(opened.engine, wanted, compress, control);
      } finally {
        await opened.close();
      }
    }, options);
  }

  export(options: ExportOptions = {}): ReadableStream<Uint8Array> {
    return exportOf(this, (given) => this.openExport(given), options);
  }

  /** The file that {@link export} streams. */
  openExport(options: ExportOptions & LongOptions): Promise<Exported> {
    return this.#inFull(async (engine, control) => {
      const exported = await engine.export(newImage(options), control);
      const reads = new Set<Promise<Uint8Array>>();
      const close = () => {
        if (!this.#exports.delete(close)) return;
        void Promise.allSettled(reads).then(() => exported.free());
      };
      this.#exports.add(close);
      const read: Exported['read'] = async (offset, length, given) => {
        const reading = this.#run((_, control) => exported.read(toBigInt(offset, 'offset'), length, control), given);
        reads.add(reading);
        try {
          return await reading;
        } finally {
          reads.delete(reading);
        }
      };
      return { size: toSize(exported.fileSize()), read, close };
    }, options);
  }

  async traffic(): Promise<Traffic> {
    return { ...this.#parts.traffic };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const engine = this.#open;
    this.#engine = undefined;
    this.#parts.closed();
    const changing = engine.writable ? (engine as EngineImage) : undefined;
    changing?.cancelHydration();
    await Promise.allSettled(this.#running);
    const failures: unknown[] = [];
    const attempt = (work: () => Promise<void>) => run(work).catch((error: unknown) => failures.push(error));
    for (const close of this.#exports) close();
    for (const view of this.#views) await attempt(() => view.close());
    // Calls of the views' own may have come last.
    if (changing) await attempt(() => changing.finish());
    engine.free();
    for (const file of this.#parts.files) await attempt(() => file.close());
    if (failures.length > 0) throw failures[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function create(engine: EngineImage, name: string, options: SnapshotOptions): Promise<string> {
  const time = (options.date ?? new Date()).getTime();
  const seconds = Math.floor(time / 1000);
  const nanoseconds = Math.round((time - seconds * 1000) * 1e6);
  return engine.createSnapshot(name, seconds, nanoseconds, toBigInt(options.vmClockNsec ?? 0, 'vmClockNsec'));
}
