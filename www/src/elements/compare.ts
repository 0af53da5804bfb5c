// <ox-compare>: where two states of the disk differ, as a picture.

import type { Snapshot } from 'oxcow';
import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';

import { compare, DIFFERENCE_KINDS, DifferenceMap } from '../diff.js';
import { icons } from '../icons.js';
import type { Session } from '../session.js';
import { base } from '../styles.js';
import { Task } from '../task.js';
import { counted, size } from '../words.js';

/** The choice that stands for the active state; no snapshot has such an id. */
const ACTIVE = '';

export class Compare extends LitElement {
  static override properties = {
    session: { attribute: false },
    view: { attribute: false },
    snapshots: { attribute: false },
    granularity: { attribute: false },
    _first: { state: true },
    _second: { state: true },
    _found: { state: true },
  };
  declare session: Session;
  declare view: number;
  declare snapshots: Snapshot[];
  declare granularity: number;
  declare _first: string | undefined;
  declare _second: string;
  declare _found: { map: DifferenceMap; count: number; between: string; sizes: string } | undefined;

  #task = new Task(this);
  #count = 0;

  static override styles = [
    base,
    css`
      label {
        display: grid;
        gap: 0.2rem;
        font-size: 0.8125rem;
        color: var(--muted);
        min-width: 0;
      }
      select {
        max-width: 100%;
      }
      .choose {
        align-items: end;
      }
    `,
  ];

  constructor() {
    super();
    this._second = ACTIVE;
  }

  override willUpdate(changed: PropertyValues<this>): void {
    if (!changed.has('snapshots')) return;
    const ids = [ACTIVE, ...this.snapshots.map(({ id }) => id)];
    if (this._first === undefined || !ids.includes(this._first)) this._first = this.snapshots.at(-1)?.id ?? ACTIVE;
    if (!ids.includes(this._second)) this._second = ACTIVE;
    this.#task.cancel();
    this._found = undefined; // The states are not what they were.
  }

  override render(): TemplateResult {
    const found = this._found;
    return html`<div class="stack">
      <div class="row choose">
        ${this.#choice('From', this._first ?? ACTIVE, (id) => (this._first = id))} ${this.#choice('To', this._second, (id) => (this._second = id))}
        <button ?disabled=${this.#task.running || this._first === this._second} @click=${() => this.#compare()}>Compare</button>
      </div>
      ${this.#task.progress()} ${this.#task.problem('Not compared')}
      <div role="status">
        ${found
          ? html`<p class="note ${found.map.difference.bytes === 0 ? 'ok' : ''}">
              ${found.map.difference.bytes === 0 ? icons.ok : icons.info}<span
                ><strong>${found.map.difference.bytes === 0 ? 'No difference' : `${size(found.map.difference.bytes)} differ`}</strong>
                ${found.between}${found.map.difference.differs.length ? `, in ${counted(found.map.difference.differs.length, 'place')}` : ''}.${found.sizes}</span
              >
            </p>`
          : nothing}
      </div>
      ${found && found.map.difference.bytes > 0
        ? html`<ox-map
            .image=${found.map}
            .view=${found.count}
            .granularity=${this.granularity}
            .kinds=${DIFFERENCE_KINDS}
            .what=${'map of differences'}
            .contentOf=${() => 'Differs'}
          ></ox-map>`
        : nothing}
    </div>`;
  }

  #choice(name: string, chosen: string, choose: (id: string) => void): TemplateResult {
    return html`<label
      >${name}
      <select @change=${(event: Event) => choose((event.target as HTMLSelectElement).value)}>
        <option value=${ACTIVE} ?selected=${chosen === ACTIVE}>Active state</option>
        ${this.snapshots.map((snapshot) => html`<option value=${snapshot.id} ?selected=${chosen === snapshot.id}>${snapshot.name || snapshot.id}</option>`)}
      </select></label
    >`;
  }

  #nameOf(id: string): string {
    const snapshot = this.snapshots.find((one) => one.id === id);
    return snapshot ? `“${snapshot.name || snapshot.id}”` : 'the active state';
  }

  async #compare(): Promise<void> {
    const { session, _first: first = ACTIVE, _second: second } = this;
    this._found = undefined;
    const between = `between ${this.#nameOf(first)} and ${this.#nameOf(second)}`;
    await this.#task.run('Comparing', async (watch) => {
      const opened: { close(): Promise<void> }[] = [];
      try {
        const state = async (id: string) => {
          const one = await session.openState(id === ACTIVE ? undefined : id);
          opened.push(one);
          return one.image;
        };
        const [a, b] = [await state(first), await state(second)];
        const map = new DifferenceMap(await compare(a, b, this.granularity, watch));
        const [one, other] = [a.virtualSize, b.virtualSize];
        const sizes = one == other ? '' : ` The disk has had ${size(one)}, and then ${size(other)}.`;
        this._found = { map, count: ++this.#count, between, sizes };
      } finally {
        for (const one of opened) await one.close();
      }
    });
  }
}

customElements.define('ox-compare', Compare);
