/**
 * An image as a disk of v86, the PC emulator (npm `v86`).
 *
 * @example
 * import { start } from 'oxcow';
 * import { v86Disk } from 'oxcow/v86';
 * const engine = await start();
 * const image = await engine.overlay({ opfs: 'changes.qcow2' }, file);
 * const disk = v86Disk(image, { onError: ({ error }) => show(error.message) });
 * const emulator = new V86({ hda: disk, … });
 *
 * @module
 */

import { asOxcowError, OxcowError } from './errors.js';
import type { DiskImage, Snapshot } from './types.js';
import type { SnapshotOptions } from './writing.js';

export interface V86DiskOptions {
  /** Called when the disk could not do what the guest asked for. Default: writes it to the console. */
  onError?: (trouble: V86Trouble) => void;
  /** After how many milliseconds without a write everything is made durable. Default: 250. */
  idle?: number;
  /** After how many milliseconds it is while the guest keeps writing. Default: 2000. */
  flushEvery?: number;
  /** Which moment of the disk the image holds, as {@link MomentSnapshot} says it. */
  moment?: string;
}

/**
 * What the disk could not do. v86 has no way to tell the guest, so nothing is lost and nothing made up: the guest
 * waits, as on a slow disk, until {@link V86Disk.retry}, and so does everything that it writes later.
 */
export interface V86Trouble {
  error: OxcowError;
  operation: 'read' | 'write' | 'flush';
  /** Where on the disk, in bytes. */
  offset: number;
  length: number;
}

/** A snapshot, and the name of the disk's content then, which a saved state of the machine has, too. */
export interface MomentSnapshot extends Snapshot {
  moment: string;
}

type Got = (bytes: Uint8Array) => void;

/** What v86 says besides of a read. */
interface GetOptions {
  signal?: AbortSignal;
}

/** Bytes to be written, in pieces as they came. */
interface Write {
  offset: number;
  pieces: Uint8Array[];
  length: number;
  done: (() => void)[];
  settled: Promise<void>;
  settle: () => void;
}

/** What comes between writes. */
interface Between {
  work: () => Promise<void>;
  refuse: (error: OxcowError) => void;
}

/** A read that waits for {@link V86Disk.retry}. */
interface HeldRead {
  offset: number;
  length: number;
  got: Got;
  options: GetOptions;
}

const SECTOR = 512;
/** Up to how many bytes writes that follow each other become one. */
const LONGEST_WRITE = 1 << 20;
/** The longest disk that is handed out as one buffer. */
const LONGEST_BUFFER = 2 ** 31;

/** `image` as a disk for v86's options `hda`, `hdb` and `cdrom`. From then on the image belongs to the disk. */
export function v86Disk(image: DiskImage, options: V86DiskOptions = {}): V86Disk {
  return new V86Disk(image, options);
}

/**
 * The object that v86 takes. Writes are done one by one in the order they were made in; reads see every write that was
 * made before them. Nothing in v86 says when a guest wants its writes durable: they are so after each pause, and now
 * and then in between.
 */
export class V86Disk {
  readonly image: DiskImage;
  /** v86: the disk's size. */
  readonly byteLength: number;
  /** v86: set before `load` is called. */
  onload: ((event: object) => void) | undefined;

  readonly #options: V86DiskOptions;
  readonly #changes: boolean;
  /** What waits its turn; the first is under way where `#working`. */
  #turns: (Write | Between)[] = [];
  #working = false;
  /** Why writes are held. */
  #failure: OxcowError | undefined;
  #heldReads: HeldRead[] = [];
  #reads = new Set<Promise<void>>();
  /** Sectors that v86 wants at once, by their number; `undefined` while they are being read. */
  #cache = new Map<number, Uint8Array | undefined>();
  /** Since when something was written that has not been flushed. */
  #dirtySince: number | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #moment: string | undefined;
  #closing: Promise<void> | undefined;

  constructor(image: DiskImage, options: V86DiskOptions = {}) {
    const size = Number(image.virtualSize);
    if (!Number.isSafeInteger(size)) {
      throw new OxcowError('unsupported', `A disk of ${image.virtualSize} bytes is too large for v86`);
    }
    this.image = image;
    this.byteLength = size - (size % SECTOR);
    this.#options = options;
    this.#changes = image.writable;
    this.#moment = options.moment ?? (this.#changes ? undefined : 'read-only');
  }

  /** Why the guest's writes are held, if they are. */
  get failure(): OxcowError | undefined {
    return this.#failure;
  }

  /** The name of the disk's content as its guest sees it now: another one after every write, one for ever without. */
  get moment(): string {
    return (this.#moment ??= randomName());
  }

  // What v86 calls, in its own spelling.

  /** v86: says that the disk is ready. */
  load(): void {
    this.onload?.({});
  }

  /** v86: reads; `got` is called once, unless the read is held. */
  get(offset: number, length: number, got: Got, options: GetOptions = {}): void {
    const reading = this.#get({ offset, length, got, options });
    this.#reads.add(reading);
    void reading.then(() => this.#reads.delete(reading));
  }

  /** v86: reads, and has the bytes ready for `get_from_cache` from then on. */
  get_and_cache(offset: number, length: number, got: Got, options: GetOptions = {}): void {
    const wanted = sectors(offset, length).filter(({ number }) => !this.#cache.get(number));
    for (const { number } of wanted) this.#cache.set(number, undefined);
    const cache: Got = (bytes) => {
      for (const { number, at } of wanted) {
        // What was written in the meantime is newer.
        if (this.#cache.has(number)) this.#cache.set(number, this.#cache.get(number) ?? bytes.slice(at, at + SECTOR));
      }
      got(bytes);
    };
    this.get(offset, length, cache, options);
  }

  /** v86: what is ready; nothing where something is missing. */
  get_from_cache(offset: number, length: number): Uint8Array | undefined {
    const bytes = new Uint8Array(length);
    for (const { number, at } of sectors(offset, length)) {
      const sector = this.#cache.get(number);
      if (!sector) return undefined;
      bytes.set(sector, at);
    }
    return bytes;
  }

  /** v86: writes; `done` is called once the image has it. `data` may be memory that v86 uses again at once. */
  set(offset: number, data: Uint8Array, done: () => void = () => {}): void {
    const bytes = data.slice();
    if (this.#changes) this.#moment = undefined;
    for (const { number, at } of sectors(offset, bytes.length)) {
      if (this.#cache.has(number)) this.#cache.set(number, bytes.slice(at, at + SECTOR));
    }
    const last = this.#turns.at(-1);
    const begun = this.#working && this.#turns.length === 1;
    if (last && isWrite(last) && !begun && continues(last, offset, bytes)) {
      last.pieces.push(bytes);
      last.length += bytes.length;
      last.done.push(done);
    } else {
      let settle!: () => void;
      const settled = new Promise<void>((resolve) => (settle = resolve));
      this.#turns.push({ offset, pieces: [bytes], length: bytes.length, done: [done], settled, settle });
    }
    void this.#work();
  }

  /** v86: all of the disk, for downloads; nothing where it is too long. `image.convert` and `image.stream` do better. */
  get_buffer(got: (buffer?: ArrayBuffer) => void): void {
    if (this.byteLength > LONGEST_BUFFER) return got();
    const all = () => new Response(this.image.stream({ length: this.byteLength })).arrayBuffer();
    this.#between(all).then(got, (thrown: unknown) => {
      this.#tell(thrown, 'read', 0, this.byteLength);
      got();
    });
  }

  /** v86: what goes into saved states, which is not the disk, but the moment of it that belongs to the state. */
  get_state(): unknown[] {
    return [1, this.byteLength, this.moment];
  }

  /** v86: refuses a state that belongs to another moment. A guest that goes on with another disk would destroy it. */
  set_state(state: unknown[]): void {
    const [version, size, moment] = state;
    if (version !== 1 || size !== this.byteLength || moment !== this.moment) {
      throw new OxcowError('refused', 'The state was saved with another moment of the disk: bring that snapshot back first');
    }
  }

  // What the page calls.

  /** Waits for everything that the guest has asked for until now, and makes it durable. */
  flush(): Promise<void> {
    return this.#between(() => this.#flushed());
  }

  /** Keeps the disk as it is at this call, while the guest runs on: every write before it is in, none after it. */
  async snapshot(name: string, options?: SnapshotOptions): Promise<MomentSnapshot> {
    const { moment } = this;
    const snapshot = await this.#between(async () => {
      await this.#flushed();
      return this.image.createSnapshot(name, options);
    });
    return { ...snapshot, moment };
  }

  /**
   * Makes the disk what it was at a snapshot. The emulator must be stopped then, and go on with the state that was saved
   * with the snapshot, or with a restart: a guest does not expect its disk to change.
   */
  async restore({ id, moment }: Pick<MomentSnapshot, 'id' | 'moment'>): Promise<void> {
    await this.#between(() => this.image.applySnapshot(id));
    this.#cache.clear();
    this.#moment = moment;
  }

  /** Tries again what is held. */
  retry(): void {
    this.#failure = undefined;
    for (const { offset, length, got, options } of this.#heldReads.splice(0)) this.get(offset, length, got, options);
    void this.#work();
  }

  /** Does what is left, makes it durable and closes the image. Where that fails the image is closed all the same. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const failures: unknown[] = [];
    const attempt = (work: Promise<void>) => work.catch((error: unknown) => failures.push(error));
    if (this.#failure) this.retry();
    await attempt(this.flush());
    clearTimeout(this.#timer);
    await attempt(this.image.close());
    if (failures.length > 0) throw failures[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #get(read: HeldRead): Promise<void> {
    const { offset, length, got, options } = read;
    let bytes: Uint8Array;
    try {
      // The last write that overlaps is done after all others that do.
      await this.#overlapping(offset, length)?.settled;
      bytes = await this.image.read(offset, length, options.signal ? { signal: options.signal } : {});
    } catch (thrown) {
      if (options.signal?.aborted) return; // v86 does not wait for it any more.
      this.#heldReads.push(read);
      this.#tell(thrown, 'read', offset, length);
      return;
    }
    call(() => got(bytes));
  }

  /** The last write that is not done yet of those that overlap a range. */
  #overlapping(offset: number, length: number): Write | undefined {
    for (let at = this.#turns.length - 1; at >= 0; at -= 1) {
      const turn = this.#turns[at]!;
      if (isWrite(turn) && turn.offset < offset + length && offset < turn.offset + turn.length) return turn;
    }
    return undefined;
  }

  /** Does all turns, one after the other, unless that is under way or writes are held. */
  async #work(): Promise<void> {
    if (this.#working || this.#failure) return;
    this.#working = true;
    for (let turn; (turn = this.#turns[0]) && !this.#failure; ) {
      if (isWrite(turn)) {
        await this.#write(turn);
      } else {
        this.#turns.shift();
        await turn.work();
      }
    }
    this.#working = false;
    this.#schedule(this.#options.idle ?? 250);
  }

  async #write(write: Write): Promise<void> {
    try {
      await this.image.write(write.offset, joined(write));
    } catch (thrown) {
      this.#hold(thrown, 'write', write.offset, write.length);
      return;
    }
    this.#turns.shift();
    if (this.#dirtySince === undefined) {
      this.#dirtySince = performance.now();
      this.#schedule(Infinity);
    }
    write.settle();
    write.done.forEach(call);
  }

  /** Does `work` after every write made before this call and before all later ones; fails while writes are held. */
  async #between<T>(work: () => Promise<T>): Promise<T> {
    if (this.#failure) throw this.#failure;
    const reads = [...this.#reads];
    return new Promise<T>((resolve, reject) => {
      const turn = async () => {
        await Promise.all(reads);
        await work().then(resolve, reject);
      };
      this.#turns.push({ work: turn, refuse: reject });
      void this.#work();
    });
  }

  /** Holds all writes, and tells who waits for them to be done. */
  #hold(thrown: unknown, operation: 'write' | 'flush', offset: number, length: number): void {
    const error = asOxcowError(thrown);
    this.#failure = error;
    for (const turn of this.#turns) if (!isWrite(turn)) turn.refuse(error);
    this.#turns = this.#turns.filter(isWrite);
    this.#tell(error, operation, offset, length);
  }

  async #flushed(): Promise<void> {
    const since = this.#dirtySince;
    if (since === undefined) return;
    this.#dirtySince = undefined; // Before it: writes that come in meanwhile want another one.
    try {
      await this.image.flush();
    } catch (error) {
      this.#dirtySince = since;
      this.#hold(error, 'flush', 0, this.byteLength);
      throw error;
    }
  }

  /** Has a flush come after `idle` milliseconds without a write, and now and then while there are some. */
  #schedule(idle: number): void {
    clearTimeout(this.#timer);
    if (this.#dirtySince === undefined || this.#closing || this.#failure) return;
    const due = this.#dirtySince + (this.#options.flushEvery ?? 2000) - performance.now();
    // Why one fails has been told.
    this.#timer = setTimeout(() => void this.flush().catch(() => {}), Math.max(0, Math.min(idle, due)));
  }

  #tell(thrown: unknown, operation: V86Trouble['operation'], offset: number, length: number): void {
    const error = asOxcowError(thrown);
    const { onError } = this.#options;
    if (onError) call(() => onError({ error, operation, offset, length }));
    else console.error(`A disk's ${operation} of ${length} bytes at ${offset} failed, the guest waits: ${error.message}`);
  }
}

function isWrite(turn: Write | Between): turn is Write {
  return 'pieces' in turn;
}

/** Whether a write begins where `write` ends, and both may become one. */
function continues(write: Write, offset: number, bytes: Uint8Array): boolean {
  return write.offset + write.length === offset && write.length + bytes.length <= LONGEST_WRITE;
}

function joined({ pieces, length }: Write): Uint8Array {
  if (pieces.length === 1) return pieces[0]!;
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}

/** The whole sectors of a range: their numbers, and where in the range they are. */
function sectors(offset: number, length: number): { number: number; at: number }[] {
  return Array.from({ length: Math.floor(length / SECTOR) }, (_, index) => ({
    number: offset / SECTOR + index,
    at: index * SECTOR,
  }));
}

/** Calls somebody else's function so that its errors are its own. */
function call(work: () => void): void {
  queueMicrotask(work);
}

/** 128 random bits; not `randomUUID`, which insecure pages do not have. */
function randomName(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
