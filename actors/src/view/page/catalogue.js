// Which charts there are. A chart without any number that the run has is not shown.

const spread = (key) => [
  { name: 'mean', key: `${key}/mean` },
  { name: 'lowest', key: `${key}/min` },
  { name: 'highest', key: `${key}/max` },
];

const byRole = (prefix, columns) =>
  columns
    .filter((column) => column.startsWith(`${prefix}/`))
    .map((column) => ({ name: column.slice(prefix.length + 1).replaceAll('_', ' '), key: column }));

/** Groups of charts for a run that has these columns. */
export function catalogue(columns) {
  const one = (key, name = 'value') => [{ name, key }];
  const groups = [
    {
      title: 'What PPO is for',
      charts: [
        { title: 'Score', caption: 'mean over the batch, by the reward that PPO sees', series: one('batch/score', 'score') },
        { title: 'Gold score', caption: 'mean over the batch; PPO never sees it', series: one('gold', 'gold') },
        { title: 'KL to the SFT model', caption: 'nats a response, summed k1', series: one('batch/kl', 'kl') },
        { title: 'NLL of pretraining text', caption: 'nats a token, in training', series: one('train/ptx_loss', 'NLL') },
        { title: 'Response length', caption: 'tokens', series: spread('batch/length') },
        { title: 'Labels', caption: 'rankings that the reward model has learnt from', series: one('n_labels', 'labels') },
        { title: 'Entropy', caption: 'nats a token, of the sampling distributions', series: one('batch/entropy', 'entropy') },
      ],
    },
    {
      title: 'Training',
      charts: [
        { title: 'Policy loss', caption: 'clipped surrogate, a token', series: one('train/policy_loss', 'policy') },
        { title: 'Value loss', caption: 'clipped, a token', series: one('train/value_loss', 'value') },
        { title: 'Clip fraction', caption: 'share of tokens whose ratio was clipped', series: one('train/clip_fraction', 'clipped') },
        { title: 'Explained variance', caption: 'of the returns, by the values', series: one('train/explained_variance', 'explained') },
        { title: 'How far an update moves', caption: 'k3, nats a token', series: one('train/approx_kl', 'approx. KL') },
        {
          title: 'KL estimators',
          caption: 'nats a token',
          series: ['k1', 'k2', 'k3'].map((name) => ({ name, key: `batch/kl_${name}` })),
        },
        {
          title: 'Gradient norms',
          caption: 'before clipping',
          series: [
            { name: 'policy', key: 'train/policy_grad_norm' },
            { name: 'value model', key: 'train/value_grad_norm' },
          ],
        },
        { title: 'Learning rate', caption: "the policy's, at the update's last step", series: one('train/lr', 'lr') },
        { title: 'KL coefficient', caption: 'of the penalty in the rewards', series: one('batch/kl_coef', 'kl_coef') },
        { title: 'Skipped steps', caption: 'loss or gradient not finite', series: one('train/n_skipped', 'skipped') },
      ],
    },
    {
      title: 'Flow',
      charts: [
        { title: 'Throughput', caption: 'response tokens trained on a second', series: one('flow/tokens_per_s', 'tokens/s') },
        { title: 'Throughput by role', caption: 'tokens a second', series: byRole('flow/role_tokens_per_s', columns) },
        { title: 'Busy share by role', caption: 'of the time since the last update', series: byRole('flow/busy', columns) },
        { title: 'Staleness', caption: 'updates between sampling and training, over tokens', series: spread('batch/staleness') },
        { title: 'Off-policy weight', caption: 'after its cap; 1 at staleness 0', series: spread('train/off_policy_weight') },
        {
          title: 'Tickets',
          caption: 'in flight, and dropped so far',
          series: [
            { name: 'in flight', key: 'flow/tickets/in_flight' },
            { name: 'dropped', key: 'flow/tickets/dropped' },
          ],
        },
        {
          title: 'Endings',
          caption: 'share of responses',
          series: [
            { name: 'ended by themselves', key: 'batch/ended_share' },
            { name: 'empty', key: 'batch/empty_share' },
          ],
        },
      ],
    },
  ];
  const has = new Set(columns);
  for (const group of groups) {
    for (const chart of group.charts) chart.series = chart.series.filter(({ key }) => has.has(key));
    group.charts = group.charts.filter((chart) => chart.series.length > 0);
  }
  return groups.filter((group) => group.charts.length > 0);
}
