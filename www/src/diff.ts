// Where two states of a disk differ. What both keep at the same place of the file is the same; only where the
// places differ bytes are read.

import { OVERVIEW_KINDS, type DiskImage, type Extent, type MapOptions, type MapPage, type Overview, type OverviewOptions } from 'oxcow';

import type { Watch } from './task.js';

/** What is read and compared at once. */
const SLICE = 1 << 20;

/** A part of the disk, from `start` up to `end`. */
interface Run {
  start: number;
  end: number;
}

export interface Difference {
  /** What differs, and what is the same and not only zeros, each in order and in whole clusters. */
  differs: Run[];
  same: Run[];
  /** The longer of both disks. */
  size: number;
  /** How many bytes differ, in whole clusters. */
  bytes: number;
  /** Bytes that had to be read. */
  read: number;
}

/** Compares two disks, cluster by cluster; what only one has is compared with zeros. */
export async function compare(a: DiskImage, b: DiskImage, cluster: number, watch: Watch): Promise<Difference> {
  const size = Math.max(Number(a.virtualSize), Number(b.virtualSize));
  const difference: Difference = { differs: [], same: [], size, bytes: 0, read: 0 };
  const add = (runs: Run[], start: number, end: number) => {
    const last = runs.at(-1);
    if (last && start <= last.end) last.end = Math.max(last.end, end);
    else if (start < end) runs.push({ start, end });
  };
  for await (const { start, end, left, right } of together(a, b, size, watch.signal)) {
    watch.onProgress(start, size);
    const zeros = [left, right].filter(readsAsZeros).length;
    if (zeros === 2) continue;
    // What is marked as zeros may keep its place in the file, with whatever is there.
    if (zeros === 0 && samePlace(left, right)) {
      add(difference.same, start, end);
      continue;
    }
    for (let at = start; at < end; ) {
      watch.signal.throwIfAborted();
      // Slices end with clusters, so that what a cluster is does not depend on where the extents begin.
      const next = Math.min(end, (Math.floor(at / SLICE) + 1) * SLICE);
      const [one, other] = await Promise.all([
        readsAsZeros(left) ? undefined : a.read(at, next - at, { signal: watch.signal }),
        readsAsZeros(right) ? undefined : b.read(at, next - at, { signal: watch.signal }),
      ]);
      difference.read += (one?.length ?? 0) + (other?.length ?? 0);
      for (let from = at; from < next; ) {
        const to = Math.min(next, (Math.floor(from / cluster) + 1) * cluster);
        const equal = same(one?.subarray(from - at, to - at), other?.subarray(from - at, to - at));
        if (!equal) add(difference.differs, Math.floor(from / cluster) * cluster, Math.min(size, Math.ceil(to / cluster) * cluster));
        else add(difference.same, from, to);
        from = to;
      }
      at = next;
      watch.onProgress(at, size);
    }
  }
  difference.bytes = difference.differs.reduce((sum, { start, end }) => sum + end - start, 0);
  return difference;
}

interface Pair extends Run {
  /** `undefined` past a disk's end. */
  left: Extent | undefined;
  right: Extent | undefined;
}

/** Both maps at once, in parts over which neither changes; offsets are those of the parts. */
async function* together(a: DiskImage, b: DiskImage, size: number, signal: AbortSignal): AsyncGenerator<Pair> {
  const maps = [a, b].map((image) => image.extents({ signal })[Symbol.asyncIterator]());
  const heads: (Extent | undefined)[] = [undefined, undefined];
  for (let at = 0; at < size; ) {
    let end = size;
    for (const [index, map] of maps.entries()) {
      if (!heads[index] || endOf(heads[index]) <= at) heads[index] = (await map.next()).value ?? undefined;
      const head = heads[index];
      if (head) end = Math.min(end, endOf(head));
    }
    yield { start: at, end, left: from(heads[0], at), right: from(heads[1], at) };
    at = end;
  }
}

function endOf({ start, length }: Extent): number {
  return Number(start) + Number(length);
}

/** The part of an extent from `at` on. */
function from(extent: Extent | undefined, at: number): Extent | undefined {
  if (!extent || extent.offset === undefined) return extent;
  return { ...extent, start: at, offset: Number(extent.offset) + at - Number(extent.start) };
}

function readsAsZeros(extent: Extent | undefined): boolean {
  return extent === undefined || extent.zero || !extent.data;
}

/** Whether both are the same bytes of the same file. */
function samePlace(a: Extent | undefined, b: Extent | undefined): boolean {
  return a?.offset !== undefined && a.offset === b?.offset && a.depth === b.depth && !a.compressed && !b.compressed;
}

function same(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  if (!a || !b) return (a ?? b)?.every((byte) => byte === 0) ?? true;
  return a.every((byte, index) => byte === b[index]);
}

/** What a cell of the picture can be, with the place of its share in an overview. */
export const DIFFERENCE_KINDS = [
  { kind: 'data', at: 2, name: 'Differs', what: 'differs' },
  { kind: 'zero', at: 1, name: 'The same in both', what: 'the same in both' },
  { kind: 'unallocated', at: 0, name: 'Zeros in both', what: 'zeros in both' },
] as const;

/** A difference in the form in which the map draws a disk. */
export class DifferenceMap {
  constructor(readonly difference: Difference) {}

  get virtualSize(): number {
    return this.difference.size;
  }

  async overview({ start = 0, length, cells }: OverviewOptions): Promise<Overview> {
    const from = Number(start);
    const whole = length === undefined ? this.virtualSize - from : Number(length);
    const kinds = OVERVIEW_KINDS.length;
    const amounts = new Float64Array(cells * kinds);
    const put = (runs: readonly Run[], kind: number) => {
      for (const run of runs.slice(firstPast(runs, from))) {
        if (run.start >= from + whole) break;
        const last = Math.min(cells - 1, Math.floor(((run.end - from) * cells) / whole));
        for (let cell = Math.max(0, Math.floor(((run.start - from) * cells) / whole)); cell <= last; cell += 1) {
          const [low, high] = [from + (whole * cell) / cells, from + (whole * (cell + 1)) / cells];
          const overlap = Math.min(run.end, high) - Math.max(run.start, low);
          if (overlap > 0) amounts[cell * kinds + kind] = (amounts[cell * kinds + kind] ?? 0) + overlap;
        }
      }
    };
    put(this.difference.differs, 2);
    put(this.difference.same, 1);
    const shares = new Uint8Array(cells * kinds);
    const totals: number[] = OVERVIEW_KINDS.map(() => 0);
    for (let cell = 0; cell < cells; cell += 1) {
      const most = whole / cells;
      // What is in no run is zeros in both.
      amounts[cell * kinds] = Math.max(0, most - (amounts[cell * kinds + 1] ?? 0) - (amounts[cell * kinds + 2] ?? 0));
      for (let kind = 0; kind < 3; kind += 1) {
        const amount = amounts[cell * kinds + kind] ?? 0;
        totals[kind] = (totals[kind] ?? 0) + amount;
        shares[cell * kinds + kind] = amount < 0.5 ? 0 : Math.max(1, Math.round((amount / most) * 255));
      }
    }
    return { start, length: whole, cells, shares, totals: totals.map(Math.round) };
  }

  /** The differing parts as extents: what the table shows. */
  async map({ start = 0, length, limit = 1000 }: MapOptions = {}): Promise<MapPage> {
    const from = Number(start);
    const end = length === undefined ? this.virtualSize : from + Number(length);
    const { differs } = this.difference;
    const extents: Extent[] = [];
    let index = firstPast(differs, from);
    for (; index < differs.length && extents.length < limit; index += 1) {
      const run = differs[index] as Run;
      if (run.start >= end) break;
      const [low, high] = [Math.max(run.start, from), Math.min(run.end, end)];
      extents.push({ start: low, length: high - low, depth: 0, present: true, zero: false, data: true, compressed: false });
    }
    const next = differs[index];
    return next && next.start < end ? { extents, next: next.start } : { extents };
  }
}

/** The index of the first run that ends behind `at`. */
function firstPast(runs: readonly Run[], at: number): number {
  let [low, high] = [0, runs.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((runs[middle] as Run).end <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}
