// <ox-snapshots>: the states of the disk as a tree, which of them is looked at, and what can be done with each.

import type { Size, Snapshot } from 'oxcow';
import { css, html, LitElement, nothing, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import type { Session } from '../session.js';
import type { Lineage } from '../store.js';
import { base } from '../styles.js';
import { Task } from '../task.js';
import { date, duration, exact, size } from '../words.js';
import { ask } from './dialog.js';

/** A state, and how deep in the tree it stands. */
interface Row {
  snapshot: Snapshot | undefined;
  depth: number;
}

export class Snapshots extends LitElement {
  static override properties = {
    session: { attribute: false },
    snapshots: { attribute: false },
    used: { attribute: false },
    activeSize: { attribute: false },
    writable: { attribute: false },
    lineage: { attribute: false },
    _wrong: { state: true },
  };
  declare session: Session;
  declare snapshots: Snapshot[];
  /** The id of the snapshot that is looked at. */
  declare used: string | undefined;
  /** The size of the disk in its active state. */
  declare activeSize: Size;
  /** Whether there is anything to be changed. */
  declare writable: boolean;
  declare lineage: Lineage | undefined;
  declare _wrong: string;

  #task = new Task(this);
  #what = '';

  static override styles = [
    base,
    css`
      .state {
        display: flex;
        align-items: center;
        gap: 0.5rem;
        min-height: 1.75rem;
        cursor: pointer;
        font-weight: 600;
      }
      table {
        min-width: 44rem;
        margin-top: 0.25rem;
      }
      td {
        vertical-align: middle;
      }
      .end {
        padding-inline-end: 1.75rem;
      }
      tr.used td {
        background: var(--accent-soft);
      }
      td:first-child {
        padding-inline-start: 0.375rem;
      }
      td button {
        min-height: 1.875rem;
        padding: 0.1rem 0.625rem;
        font-size: 0.8125rem;
      }
      td:first-child {
        min-width: 12rem;
      }
      td .row {
        flex-wrap: nowrap;
      }
      .branch {
        display: flex;
        align-items: center;
      }
      .branch > .step {
        align-self: stretch;
        width: 1.1rem;
        border-inline-start: 1.5px solid var(--line);
        margin-inline-start: 0.5rem;
      }
      .fields {
        margin-top: 0.875rem;
      }
      .fields label {
        flex: 0 1 18rem;
      }
    `,
  ];

  constructor() {
    super();
    this._wrong = '';
  }

  override render(): TemplateResult {
    return html`<p class="small muted">
        Each snapshot is the whole disk as it was. Choose which state the map, the bytes and the download
        show${this.writable ? '; nothing is changed by looking' : ''}.
      </p>
      ${this.snapshots.length || !this.writable ? this.#table() : nothing}
      ${this.writable
        ? html`<form class="fields" @submit=${this.#create} novalidate>
              <label>Name of a new snapshot <input type="text" name="name" maxlength="255" autocomplete="off" aria-describedby="wrong" aria-invalid=${this._wrong ? 'true' : 'false'} /></label>
              <button type="submit" class="primary" ?disabled=${this.#task.running}>Take a snapshot…</button>
            </form>
            <p class="wrong" id="wrong" role="alert" ?hidden=${!this._wrong}>${this._wrong}</p>
            ${this.#task.problem(this.#what)}`
        : nothing}`;
  }

  #table(): TemplateResult {
    return html`<div class="scroll" tabindex="0" role="region" aria-label="Table of snapshots">
      <table>
        <caption class="hide">States of the disk</caption>
        <thead>
          <tr>
            <th scope="col">State</th>
            <th scope="col">Taken</th>
            <th scope="col" class="end">Disk size</th>
            <th scope="col" class="end">Memory saved</th>
            <th scope="col">Machine ran for</th>
            ${this.writable ? html`<th scope="col">What to do</th>` : nothing}
          </tr>
        </thead>
        <tbody class="number">
          ${this.#rows().map((row) => (row.snapshot ? this.#row(row.snapshot, row.depth) : this.#active(row.depth)))}
        </tbody>
      </table>
    </div>`;
  }

  /** As a tree where it is known which state came from which; the active one first where it is not. */
  #rows(): Row[] {
    const { snapshots, lineage } = this;
    const known = new Set(snapshots.map(({ id }) => id));
    const parentOf = (id: string | null | undefined) => (id != null && known.has(id) ? id : null);
    if (!this.writable || !snapshots.some(({ id }) => parentOf(lineage?.parents[id])) && !parentOf(lineage?.current)) {
      return [{ snapshot: undefined, depth: 0 }, ...snapshots.map((snapshot) => ({ snapshot, depth: 0 }))];
    }
    const rows: Row[] = [];
    const walk = (parent: string | null, depth: number) => {
      for (const snapshot of snapshots) {
        if (parentOf(lineage?.parents[snapshot.id]) !== parent || rows.some((row) => row.snapshot === snapshot)) continue;
        rows.push({ snapshot, depth });
        walk(snapshot.id, depth + 1);
      }
      if (parentOf(lineage?.current) === parent) rows.push({ snapshot: undefined, depth });
    };
    walk(null, 0);
    // Whatever the page remembers: every snapshot is shown.
    for (const snapshot of snapshots) if (!rows.some((row) => row.snapshot === snapshot)) rows.push({ snapshot, depth: 0 });
    return rows;
  }

  #active(depth: number): TemplateResult {
    return html`<tr class=${this.used === undefined ? 'used' : ''}>
      <td>
        <span class="branch"
          >${steps(depth)}<label class="state"
            ><input type="radio" name="state" .checked=${this.used === undefined} @change=${() => this.#use(undefined)} />Active state</label
          ></span
        >
      </td>
      <td>now</td>
      <td class="end" title=${exact(this.activeSize)}>${size(this.activeSize)}</td>
      <td class="end">–</td>
      <td>–</td>
      ${this.writable ? html`<td></td>` : nothing}
    </tr>`;
  }

  #row(snapshot: Snapshot, depth: number): TemplateResult {
    const used = this.used === snapshot.id;
    const disk = snapshot.diskSize ?? this.activeSize;
    const name = nameOf(snapshot);
    return html`<tr class=${used ? 'used' : ''}>
      <td>
        <span class="branch"
          >${steps(depth)}<label class="state"
            ><input type="radio" name="state" .checked=${used} @change=${() => this.#use(snapshot.id)} /><span class="name">${name}</span
            ><span class="muted small">${snapshot.id}</span></label
          ></span
        >
      </td>
      <td>${date(snapshot.dateSec)}</td>
      <td class="end" title=${exact(disk)}>${size(disk)}</td>
      <td class="end">${snapshot.vmStateSize == 0 ? 'none' : size(snapshot.vmStateSize)}</td>
      <td>${snapshot.vmClockSec === 0 && snapshot.vmClockNsec === 0 ? '–' : duration(snapshot.vmClockSec, snapshot.vmClockNsec)}</td>
      ${this.writable
        ? html`<td>
            <span class="row">
              <button ?disabled=${this.#task.running} aria-label=${`Apply ${name}`} @click=${() => this.#apply(snapshot)}>Apply…</button>
              <button ?disabled=${this.#task.running} aria-label=${`Delete ${name}`} @click=${() => this.#delete(snapshot)}>Delete…</button>
            </span>
          </td>`
        : nothing}
    </tr>`;
  }

  #use(id: string | undefined): void {
    this.dispatchEvent(new CustomEvent('use-snapshot', { detail: id, bubbles: true, composed: true }));
  }

  async #create(event: SubmitEvent): Promise<void> {
    event.preventDefault();
    const input = this.renderRoot.querySelector<HTMLInputElement>('input[name="name"]');
    const name = input?.value.trim() ?? '';
    this._wrong = name ? (this.snapshots.some((one) => one.name === name) ? 'There is a snapshot of that name already.' : '') : 'A snapshot wants a name.';
    if (this._wrong) return void input?.focus();
    const answer = await ask({
      title: `Take the snapshot “${name}”?`,
      safe: 'Everything: the disk stays as it is, and so do all other snapshots. It takes hardly any room until the disk is changed.',
      action: 'Take it',
    });
    if (!answer) return;
    await this.#doing('Taking a snapshot', 'No snapshot was taken', () => this.session.createSnapshot(name));
    if (input && !this.#task.error) input.value = '';
  }

  async #apply(snapshot: Snapshot): Promise<void> {
    const name = nameOf(snapshot);
    const disk = snapshot.diskSize ?? this.activeSize;
    const answer = await ask({
      title: `Go back to “${name}”?`,
      lost: 'What was changed on the disk since the last snapshot was taken. If you may want it again, take a snapshot of it first.',
      safe: `All ${this.snapshots.length === 1 ? 'of this snapshot' : `${this.snapshots.length} snapshots`}; this one can be applied again and again.`,
      ...(disk != this.activeSize && {
        more: html`<p class="note">${icons.info}<span>The disk had ${size(disk)} then, and will have that again.</span></p>`,
      }),
      action: 'Apply',
    });
    if (answer) await this.#doing('Applying', 'Not applied', () => this.session.applySnapshot(snapshot.id));
  }

  async #delete(snapshot: Snapshot): Promise<void> {
    const name = nameOf(snapshot);
    const answer = await ask({
      title: `Delete the snapshot “${name}”?`,
      lost: `The disk as it was then, ${date(snapshot.dateSec)}. It cannot be brought back.`,
      safe: 'The disk as it is now, and all other snapshots.',
      action: 'Delete',
    });
    if (answer) await this.#doing('Deleting', 'Not deleted', () => this.session.deleteSnapshot(snapshot.id));
  }

  async #doing(doing: string, what: string, work: () => Promise<void>): Promise<void> {
    this.#what = what;
    await this.#task.run(doing, work);
  }
}

function nameOf(snapshot: Snapshot): string {
  return snapshot.name || '(no name)';
}

/** The lines that lead from a state to those which came from it. */
function steps(depth: number): TemplateResult[] {
  return Array.from({ length: Math.min(depth, 8) }, () => html`<span class="step"></span>`);
}

customElements.define('ox-snapshots', Snapshots);
